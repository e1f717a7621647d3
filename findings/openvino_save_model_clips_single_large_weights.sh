#!/usr/bin/env bash
# Guess: openvino.save_model writes the weights, at worst rounded to half precision; what does
#   not fit stays float32.
# Really: by default it compresses float32 constants to float16, and an entry beyond 65,504
#   becomes 65,504 without a word, unless so many entries are out of range that the whole
#   constant is left alone. Tiny entries become 0 likewise. compress_to_fp16=False keeps them.
# Seen on 2026-11-29: openvino 2026.4.1, numpy 2.4.6
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile openvino==2026.4.1 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PROGRAM'
import numpy as np
import openvino as ov
from openvino import opset13 as ops


def written(weights, **options):
    """The product of ones with the weights, by the model that was written."""
    x = ops.parameter([1, 4], np.float32)
    product = ops.matmul(x, ops.constant(weights), False, False)
    ov.save_model(ov.Model([product], [x]), "model.xml", **options)
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    return ov.Core().compile_model("model.xml", "CPU", precise)(np.ones((1, 4), "f4"))[0][0]


one = np.diag([1e5, 1e-9, 1, 1]).astype("f4")
all_large = np.full((4, 4), 1e5, "f4")
default, kept, large = written(one), written(one, compress_to_fp16=False), written(all_large)
print("weights 1e5, 1e-9, 1, 1; computed by the saved model:", default.tolist())
print("with compress_to_fp16=False:", kept.tolist())
print("where every weight is 1e5 (sums of four):", large.tolist())
as_described = (
    default.tolist() == [65504, 0, 1, 1]
    and np.allclose(kept, [1e5, 1e-9, 1, 1])
    and np.allclose(large, 4e5)
)


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
