#!/usr/bin/env bash
# Guess: saving a quantized model with a trained Keras LoRA and loading it into the same model
#   gives the same outputs.
# Really: the file holds no LoRA matrices: the update is added to the dequantized kernel and the
#   sum is quantized anew. With int4 the error of that is as large as the update itself, with
#   int8 about a tenth of it. No warning.
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

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x = rng.normal(size=(256, 64)).astype("float32")
lost = {}
for mode in ("float32", "int8", "int4"):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, use_bias=False)])
    if mode != "float32":
        model.quantize(mode)
    layer = model.layers[0]
    base = model.predict(x, verbose=0)
    layer.enable_lora(4)
    layer.lora_kernel_a.assign(rng.normal(size=(64, 4)) / 8)
    layer.lora_kernel_b.assign(rng.normal(size=(4, 64)) * 0.02)
    tuned = model.predict(x, verbose=0)
    model.save_weights("tuned.weights.h5")
    model.load_weights("tuned.weights.h5")
    loaded = model.predict(x, verbose=0)
    lost[mode] = np.linalg.norm(loaded - tuned) / np.linalg.norm(tuned - base)
    print(f"{mode}: outputs after loading are off by {lost[mode]:.2f} times the update")
as_described = lost["float32"] < 1e-4 and lost["int8"] > 0.05 and lost["int4"] > 0.5


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
