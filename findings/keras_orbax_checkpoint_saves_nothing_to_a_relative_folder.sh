#!/usr/bin/env bash
# Guess: OrbaxCheckpoint("checkpoints") saves to that folder below the working directory, or
#   says that it cannot.
# Really: Orbax wants an absolute path. It says so in the thread that writes, as an error in the
#   log; that comes out only where another save follows. At the end of fit the callback catches
#   and drops it: a fit with one save ends as if all were well, and the folder holds an
#   unfinished temporary folder. keras-nightly 3.16.0.dev2026102704 has a warning there.
# Seen on 2026-11-29: keras 3.15.1, orbax-checkpoint 0.12.8, jax 0.10.2
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 jax==0.10.2 orbax-checkpoint==0.12.8 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=jax
"$folder/env/bin/python" - <<'PROGRAM'
import logging
from pathlib import Path

import keras
import numpy as np

logging.getLogger("absl").setLevel(logging.CRITICAL)  # tracebacks of some hundred lines
x = np.ones((4, 8), "float32")


def saved(folder):
    """What is in the folder after a fit that raised nothing, and whether it can be loaded."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    callback = keras.callbacks.OrbaxCheckpoint(str(folder))
    model.fit(x, np.ones((4, 2), "float32"), verbose=0, callbacks=[callback])
    try:
        model.load_weights(str(folder))
        loaded = True
    except Exception as error:  # the class is not in Orbax's public interface
        loaded = type(error).__name__
    return sorted(path.name for path in Path(folder).iterdir()), loaded


seen = {}
for folder in (Path("checkpoints").resolve(), Path("relative")):
    seen[folder.name] = saved(folder)
    where = "absolute" if folder.is_absolute() else "relative"
    print(f"{where} folder: fit returned; it holds {seen[folder.name][0]}, loads: ", end="")
    print(seen[folder.name][1])
as_described = (
    seen["checkpoints"][1] is True
    and seen["relative"][1] is not True
    and not any(name.isdigit() for name in seen["relative"][0])
)


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
