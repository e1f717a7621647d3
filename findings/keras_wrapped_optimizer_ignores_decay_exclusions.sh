#!/usr/bin/env bash
# Guess: optimizer.exclude_from_weight_decay works on every Keras optimizer, also on the one
#   that compile has wrapped because of mixed_float16.
# Really: LossScaleOptimizer and MultiOptimizer take the call without a word and pass nothing on
#   to the optimizers they hold, so that the excluded weights decay all the same. Call it on the
#   inner optimizers.
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

optimizers = keras.optimizers


def adamw():
    return optimizers.AdamW(0.1, weight_decay=0.1)


def kept(optimizer):
    """The share of the kernel that is left after a step without any gradient."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, use_bias=False)])
    before = model.get_weights()[0]
    model.compile(optimizer, "mse")
    model.optimizer.exclude_from_weight_decay(var_names=["kernel"])
    model.fit(np.zeros((4, 8), "float32"), np.zeros((4, 4), "float32"), verbose=0)
    return round(float((model.get_weights()[0] / before).mean()), 4)


shares = {
    "AdamW": kept(adamw()),
    "LossScaleOptimizer": kept(optimizers.LossScaleOptimizer(adamw())),
    "MultiOptimizer": kept(optimizers.MultiOptimizer(optimizers.OptimizerMap(adamw()))),
}
for name, share in shares.items():
    print(f"{name}: {share} of the excluded kernel is left after one step")
as_described = list(shares.values()) == [1.0, 0.99, 0.99]


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
