#!/usr/bin/env bash
# Guess: a model with Keras's LoRA that reads its own weights file goes on training where it
#   stood.
# Really: the file holds the merged kernel, and loading sets both LoRA matrices to zero. The
#   gradient of each is a product with the other, so it is zero for good: every later fit runs,
#   reports a loss, and moves no LoRA weight. Nothing is said. The matrices need new values by
#   hand after each load.
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

rng = np.random.default_rng(0)
x = rng.normal(size=(64, 8)).astype("float32")
y = rng.normal(size=(64, 4)).astype("float32")

model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, use_bias=False)])
layer = model.layers[0]
layer.enable_lora(2)


def moved_by_training():
    before = model.get_weights()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    losses = model.fit(x, y, epochs=10, verbose=0).history["loss"]
    after = model.get_weights()
    distance = max(float(np.abs(a - b).max()) for a, b in zip(after, before))
    return distance, losses


first, losses = moved_by_training()
print(f"before: weights moved by {first:.3f}, loss {losses[0]:.4f} to {losses[-1]:.4f}")

model.save_weights("own.weights.h5")
model.load_weights("own.weights.h5")
largest = [float(np.abs(v).max()) for v in (layer.lora_kernel_a, layer.lora_kernel_b)]
print("largest entries of lora_kernel_a and lora_kernel_b after loading:", largest)

second, losses = moved_by_training()
print(f"after: weights moved by {second}, loss {losses[0]:.4f} to {losses[-1]:.4f}")
as_described = first > 0.01 and second == 0 and largest == [0, 0]


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
