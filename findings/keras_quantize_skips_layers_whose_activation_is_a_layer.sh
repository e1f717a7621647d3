#!/usr/bin/env bash
# Guess: model.quantize("int8") quantizes every Dense, however its activation is given, and warns
#   of a layer that it leaves out, as it does of kinds that have no quantization.
# Really: it takes only layers without layers in them. A Dense with activation=LeakyReLU() or
#   PReLU() has one, and stays in float32 without a word, four times as large; with
#   activation="leaky_relu" it is quantized. The layer's own quantize("int8") works on both.
# Seen on 2026-12-01: keras 3.15.1, torch 2.13.0 (the code is the same for every backend)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 torch==2.13.0 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=torch
"$folder/env/bin/python" - <<'PROGRAM'
import warnings

import keras
import numpy as np

ACTIVATIONS = {
    "a name": lambda: "leaky_relu",
    "a function": lambda: keras.activations.leaky_relu,
    "LeakyReLU()": keras.layers.LeakyReLU,
    "PReLU()": keras.layers.PReLU,
}


def kernel_dtypes(activation):
    """The kernel's dtype after the model's, and after the layer's own quantize."""
    found = []
    for of_model in (True, False):
        layer = keras.layers.Dense(64, activation=activation())
        model = keras.Sequential([keras.Input((64,)), layer, keras.layers.Dense(4)])
        model(np.ones((1, 64), "float32"))  # builds the activation too
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.quantize("int8") if of_model else layer.quantize("int8")
        warned = any(layer.name in str(warning.message) for warning in caught)
        found.append(f"{layer._kernel.dtype}{', warns' * warned}")
    return found


seen = {name: kernel_dtypes(activation) for name, activation in ACTIVATIONS.items()}
for name, (by_model, by_layer) in seen.items():
    print(f"activation is {name}: model.quantize {by_model}, layer.quantize {by_layer}")
quantized, skipped = ["int8", "int8"], ["float32", "int8"]
if list(seen.values()) != [quantized, quantized, skipped, skipped]:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
