#!/usr/bin/env bash
# Guess: safetensors.numpy.save_file writes the values of a transposed or column-ordered NumPy array, or
#   refuses it, as safetensors.torch refuses a tensor that is not contiguous ("You are trying to save a
#   non contiguous tensor").
# Really: it writes the array's memory in the order in which it lies there, under the array's own shape:
#   the file loads without an error, with the entries in other places. `x.T`, np.asfortranarray(x), a
#   column and every second column are all wrong. np.ascontiguousarray(x) before saving is the remedy
#   (for arrays of no axis np.array(x, order="C"), which keeps their shape).
# Seen on 2026-11-30: safetensors 0.8.0 with numpy 2.4.6
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile safetensors==0.8.0 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PROGRAM'
import numpy as np
from safetensors.numpy import load_file, save_file

whole = np.arange(6, dtype="float32").reshape(2, 3)
arrays = {
    "as it is": whole,
    "transposed": whole.T,
    "in the order of columns": np.asfortranarray(whole),
    "one column": whole[:, 1],
    "every second column": whole[:, ::2],
    "transposed, then contiguous": np.ascontiguousarray(whole.T),
}
same = {}
for name, array in arrays.items():
    save_file({"array": array}, "file.safetensors")
    loaded = load_file("file.safetensors")["array"]
    same[name] = np.array_equal(loaded, array)
    print(f"{name}: saved {array.tolist()}, loaded {loaded.tolist()}")
right = {"as it is", "transposed, then contiguous"}
described = {name: name in right for name in arrays}
raise SystemExit(0 if same == described else "safetensors saves such arrays otherwise now")
PROGRAM
