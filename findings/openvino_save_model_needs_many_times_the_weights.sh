#!/usr/bin/env bash
# Guess: openvino.save_model(model, path, compress_to_fp16=False) writes the constants from the memory they are in;
#   its peak is about the model that is there already.
# Really: writing 256 MB of float32 constants raises the peak by several times as much; openvino.serialize writes the
#   same bytes with hardly any.
# Seen on 2026-12-01: openvino 2026.4.1, numpy 2.4.6 (Linux)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile openvino==2026.4.1 numpy==2.4.6
cd "$folder"
cat > write.py <<'PROGRAM'
import resource
import sys

import numpy as np
import openvino as ov
from openvino import opset13 as ops

rng = np.random.default_rng(0)
arrays = [rng.standard_normal((2048, 2048)).astype("float32") for _ in range(16)]
x = ops.parameter([1, 2048], np.float32)
y = x
for array in arrays:
    y = ops.matmul(y, ov.op.Constant(array, shared_memory=True), False, False)
model = ov.Model([y], [x])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, way = peak(), sys.argv[1]
if way == "save_model":
    ov.save_model(model, f"{way}.xml", compress_to_fp16=False)
else:
    ov.serialize(model, f"{way}.xml")
print((peak() - before) / sum(array.nbytes for array in arrays))
PROGRAM
python="$folder/env/bin/python"
saved=$("$python" write.py save_model)
serialized=$("$python" write.py serialize)
echo "save_model: peak above the model, in sizes of the model: $saved"
echo "serialize: $serialized"
cmp save_model.bin serialize.bin && echo "the .bin files are equal"
"$python" -c "raise SystemExit(0 if $saved > 2 and $serialized < 0.5 else 'save_model needs less now')"
