#!/usr/bin/env bash
# Guess: what safetensors.numpy saves it loads again, from bytes as from a file.
# Really: bfloat16 arrays (of ml_dtypes, as JAX and Keras have them) come back from `load_file` and not
#   from `load`, which raises KeyError: 'BF16'. float8 arrays are saved without a word and come back from
#   neither: KeyError from bytes, AttributeError from a file. The bytes themselves are right: with
#   safetensors.deserialize and a dtype of ml_dtypes they can be read.
# Seen on 2026-11-30: safetensors 0.8.0 with numpy 2.4.6 and ml_dtypes 0.5.4
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile safetensors==0.8.0 numpy==2.4.6 ml_dtypes==0.5.4
cd "$folder"
"$folder/env/bin/python" - <<'PROGRAM'
import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import load, load_file, save


def loaded(read, array):
    try:
        values = read()["array"]
    except Exception as error:
        return type(error).__name__
    return "the same" if np.array_equal(values, array) and values.dtype == array.dtype else "others"


seen = {}
for name in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
    array = np.arange(6).astype(getattr(ml_dtypes, name, name))
    data = save({"array": array})
    open("file.safetensors", "wb").write(data)
    ((_, raw),) = safetensors.deserialize(data)
    assert np.array_equal(np.frombuffer(raw["data"], array.dtype), array)
    seen[name] = loaded(lambda: load(data), array), loaded(lambda: load_file("file.safetensors"), array)
    print(name, "| from bytes:", seen[name][0], "| from a file:", seen[name][1])
described = {
    "float16": ("the same", "the same"),
    "bfloat16": ("KeyError", "the same"),
    "float8_e4m3fn": ("KeyError", "AttributeError"),
    "float8_e5m2": ("KeyError", "AttributeError"),
}
raise SystemExit(0 if seen == described else "safetensors loads otherwise now")
PROGRAM
