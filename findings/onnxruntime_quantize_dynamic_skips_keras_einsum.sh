#!/usr/bin/env bash
# Guess: onnxruntime's quantize_dynamic brings the weights of an ONNX file that Keras wrote to 8
#   bits: a quarter of the size.
# Really: Keras on torch writes EinsumDense (every projection of keras-hub's transformers and of
#   MultiHeadAttention) as an Einsum node, which is not among the operators that are quantized.
#   The weights stay float32; nothing is said and a file is written as if it had worked. Dense
#   becomes MatMul and is quantized.
# Seen on 2026-11-29: keras 3.15.1, torch 2.13.0, onnx 1.23.2, onnxruntime 1.31.1
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 torch==2.13.0 onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=torch
"$folder/env/bin/python" - <<'PROGRAM'
import os
import warnings

import keras
import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

warnings.simplefilter("ignore")
layers = {
    "Dense": keras.layers.Dense(512, use_bias=False),
    "EinsumDense": keras.layers.EinsumDense("abc,cnh->abnh", (8, 8, 64)),
}
seen = {}
for name, layer in layers.items():
    model = keras.Sequential([keras.Input((8, 256)), layer])
    model(np.ones((1, 8, 256), "float32"))
    model.export("model.onnx", format="onnx", verbose=False)
    quantize_dynamic("model.onnx", "quantized.onnx", weight_type=QuantType.QInt8)
    share = os.path.getsize("quantized.onnx") / os.path.getsize("model.onnx")
    operators = {node.op_type for node in onnx.load("quantized.onnx").graph.node}
    seen[name] = share, operators
    print(f"{name}: {share:.2f} of the size; operators: {', '.join(sorted(operators))}")
as_described = (
    seen["Dense"][0] < 0.3
    and "MatMulInteger" in seen["Dense"][1]
    and seen["EinsumDense"][0] >= 1
    and "Einsum" in seen["EinsumDense"][1]
)


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
