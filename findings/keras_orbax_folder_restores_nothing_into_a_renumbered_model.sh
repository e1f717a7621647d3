#!/usr/bin/env bash
# Guess: the same code builds a model that reads its Orbax folder, as it reads its .weights.h5
#   file.
# Really: an Orbax folder goes by variable paths, in which the number stands that Keras gives to
#   unnamed models. A second Sequential() of the process is sequential_1: load_weights returns
#   as if all were well and restores no variable at all. A weights file goes by structure and
#   restores everything.
# Seen on 2026-11-29: keras 3.15.1, orbax-checkpoint 0.12.8, jax 0.10.2
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 jax==0.10.2 orbax-checkpoint==0.12.8 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=jax
"$folder/env/bin/python" - <<'PROGRAM'
from pathlib import Path

import keras
import numpy as np

folder = Path("orbax").resolve()
x = np.ones((4, 8), "float32")
y = np.ones((4, 2), "float32")


def build(name=None):
    layer = keras.layers.Dense(2, name="head")
    model = keras.Sequential([keras.Input((8,)), layer], name=name)
    model.compile("adam", "mse")
    return model


trained = build()
trained.fit(x, y, verbose=0, callbacks=[keras.callbacks.OrbaxCheckpoint(folder)])
trained.save_weights("trained.weights.h5")


def off(path, model):
    """How far the kernel is off after loading, and how far loading moved it."""
    before = model.get_weights()[0]
    model.load_weights(path)
    after = model.get_weights()[0]
    return float(np.abs(after - trained.get_weights()[0]).max()), np.any(after != before)


seen = {
    "weights file, unnamed model": off("trained.weights.h5", build()),
    "Orbax folder, unnamed model": off(folder, build()),
    "Orbax folder, model of the first name": off(folder, build(trained.name)),
}
for case, (distance, moved) in seen.items():
    print(f"{case}: off by {distance:.3f}, {'restored' if moved else 'left as it was'}")
exact, lost, named = (distance for distance, _ in seen.values())
as_described = exact == named == 0 and lost > 0.01


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
