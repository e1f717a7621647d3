#!/usr/bin/env bash
# Guess: a layer with dtype="float64" computes in float64 on torch, as it does on TensorFlow.
# Really: its kernel is float64, its compute_dtype is "float64", and with a bias its outputs are
#   float64 too, but only seven digits are right: ops.matmul casts both operands to what
#   result_type gives for two float64 tensors on torch, float32, and the bias then widens the
#   result. On TensorFlow sixteen digits are right. Keras 3.12.0 does the same, and
#   3.16.0.dev2026102704, where ops.add and ops.subtract of two float64 tensors give float32 too.
# Seen on 2026-11-30: keras 3.15.1, torch 2.13.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 torch==2.13.0 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=torch
"$folder/env/bin/python" - <<'PROGRAM'
import keras
import numpy as np

rng = np.random.default_rng(0)
x, kernel = rng.standard_normal((4, 64)), rng.standard_normal((64, 64))
layer = keras.layers.Dense(64, dtype="float64")
layer.build((None, 64))
layer.kernel.assign(kernel)
outputs = keras.ops.convert_to_numpy(layer(keras.ops.convert_to_tensor(x, "float64")))
error = np.abs(outputs - x @ kernel).max() / np.abs(x @ kernel).max()
dtypes = layer.kernel.dtype, layer.compute_dtype, str(outputs.dtype)
print("kernel, compute dtype, outputs:", *dtypes)
print(f"error of the outputs: {error:.1e}; of float64 it is about 1e-16")
both = keras.backend.result_type("float64", "float64")
print("result_type of two float64:", both)

if dtypes != ("float64",) * 3 or not 1e-8 < error < 1e-5 or both != "float32":
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
