#!/usr/bin/env bash
# Guess: with gradient_accumulation_steps the last, incomplete round of a fit is applied at its
#   end, or thrown away.
# Really: it waits in the optimizer. A fit of fewer batches than the number of steps changes
#   nothing and reports a loss; the first batch of the next fit then completes the round and
#   applies gradients of the former data and weights, also when other weights (another adapter)
#   were set in between.
# Seen on 2026-11-29: keras 3.15.1, jax 0.10.2 (the code is the same for every backend)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 jax==0.10.2 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=jax
"$folder/env/bin/python" - <<'PROGRAM'
import keras
import numpy as np


def loss(y, prediction):
    return keras.ops.sum(y * prediction)  # its gradient by the only weight is the sum of y


model = keras.Sequential(
    [keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
)
model.compile(keras.optimizers.SGD(1.0, gradient_accumulation_steps=4), loss)


def weight_after_fit(*targets):
    inputs = np.ones((len(targets), 1), "float32")
    targets = np.array(targets, "float32")[:, None]
    model.fit(inputs, targets, batch_size=1, shuffle=False, verbose=0)
    return float(model.get_weights()[0][0, 0])


first = weight_after_fit(8, 8, 8)
print("weight 0; after a fit of three batches of gradient 8:", first)
model.set_weights([np.full((1, 1), 100.0)])
second = weight_after_fit(0)
print("weight set to 100; after a fit of one batch of gradient 0:", second)
as_described = first == 0 and second == 100 - 24 / 4


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
