#!/usr/bin/env bash
# Guess: model.count_params() and summary() give as many parameters after quantize("int4") as
#   before, and some scales: the model has not become smaller, its parameters have.
# Really: two int4 values lie in one int8 entry, and Keras counts entries. 131,072 parameters
#   become 68,096, so the share that LoRA trains doubles in the summary: 5.9 % of an int8
#   model, 10.7 % of the int4 one, for the same matrices. int8 counts as the plain model does.
# Seen on 2026-12-01: keras 3.15.1, torch 2.13.0 (the code is the same for every backend)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 torch==2.13.0 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=torch
"$folder/env/bin/python" - <<'PROGRAM'
import math

import keras

seen = {}
for mode in (None, "int8", "int4"):
    layers = [keras.layers.Dense(256, use_bias=False) for _ in range(2)]
    model = keras.Sequential([keras.Input((256,)), *layers])
    if mode:
        model.quantize(mode)
    plain = model.count_params()
    for layer in layers:
        layer.enable_lora(8)
    trained = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    seen[mode] = plain, round(100 * trained / model.count_params(), 1)
    print(f"{mode}: {plain:,} parameters; LoRA trains {trained:,}, {seen[mode][1]} %")

described = {None: (131_072, 5.9), "int8": (131_584, 5.9), "int4": (68_096, 10.7)}
if seen != described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
