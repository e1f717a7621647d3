#!/usr/bin/env bash
# Guess: KerasFileEditor writes back the weights that it has read, also those in bfloat16, as
#   save_weights and load_weights do, or refuses before it touches a file.
# Really: it shows them as "|V2", two bytes of no type, since it drops the note in the file that
#   says bfloat16. save and resave_weights then stop in the middle with "Invalid dtype: void16".
#   Saved over the file that was opened, these weights and all after them are lost, and
#   load_weights refuses the file. Give save another name. In float32 it works, in place as well.
# Seen on 2026-12-01: keras 3.15.1, h5py 3.14.0, torch 2.13.0 (the code is the same for every backend)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 h5py==3.14.0 torch==2.13.0 \
  numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=torch
"$folder/env/bin/python" - <<'PROGRAM'
import keras
from keras.saving import KerasFileEditor

FILE = "model.weights.h5"


def new_model(dtype):
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, name="first"),
            keras.layers.Dense(2, name="second", dtype=dtype),
        ]
    )


def outcome(action):
    """What an action raises, in one line, or that it works."""
    try:
        action()
    except ValueError as error:
        return str(error).split(". ")[0]
    return "works"


seen = {}
for dtype in ("float32", "bfloat16"):
    new_model(dtype).save_weights(FILE)
    editor = KerasFileEditor(FILE)
    resaved = outcome(lambda: editor.resave_weights(FILE))
    loaded = outcome(lambda: new_model(dtype).load_weights(FILE))
    seen[dtype] = resaved, loaded
    print(f"{dtype}: resave_weights: {resaved}; load_weights: {loaded}")
stopped, lost = "Invalid dtype: void16", "A total of 1 objects could not be loaded"
as_described = seen == {"float32": ("works", "works"), "bfloat16": (stopped, lost)}

if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
