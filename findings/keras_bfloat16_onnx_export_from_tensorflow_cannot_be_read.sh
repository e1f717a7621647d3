#!/usr/bin/env bash
# Guess: Keras's ONNX export of a bfloat16 model gives a bfloat16 file, or refuses.
# Really: on TensorFlow export reports success, but the file multiplies float16 inputs by
#   bfloat16 weights, which ONNX does not allow, and declares a float16 output: onnxruntime
#   refuses to load it. Cast the model to float32 before.
# Seen on 2026-11-29: keras 3.15.1, tensorflow-cpu 2.21.0, tf2onnx 1.17.0, onnx 1.23.2,
#   onnxruntime 1.31.1
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 tensorflow-cpu==2.21.0 tf2onnx==1.17.0 onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3
"$folder/env/bin/python" - <<'PROGRAM'
import keras
import numpy as np
import onnx
import onnxruntime

kind = onnx.TensorProto.DataType.Name
seen = {}
for dtype in ("float32", "bfloat16"):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, dtype=dtype)])
    x = np.ones((2, 8), "float32")
    model(x)
    model.export("model.onnx", format="onnx", verbose=False)
    graph = onnx.load("model.onnx").graph
    weights = {kind(tensor.data_type) for tensor in graph.initializer if len(tensor.dims) == 2}
    output = kind(graph.output[0].type.tensor_type.elem_type)
    try:
        session = onnxruntime.InferenceSession("model.onnx")
        result = str(session.run(None, {session.get_inputs()[0].name: x})[0].dtype)
    except Exception as error:  # onnxruntime's errors have no public class
        result = f"{type(error).__name__}: {error}"
    seen[dtype] = weights, output, result
    print(f"{dtype}: weights {weights}, declared output {output}; running it: {result}")
as_described = (
    seen["float32"] == ({"FLOAT"}, "FLOAT", "float32")
    and seen["bfloat16"][:2] == ({"BFLOAT16"}, "FLOAT16")
    and "bound to different types" in seen["bfloat16"][2]
)


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
