#!/usr/bin/env bash
# Guess: a compiled model that loads its Orbax folder goes on as the saved one would: the folder
#   holds the optimizer's state, and load_weights restores it.
# Really: of the optimizer it restores the variables that exist. A new optimizer has its step count
#   and rate only: these come back, the momenta stay behind without a word, and the next step is
#   another one. With optimizer.build(...) before, everything is restored.
# Seen on 2026-11-30: keras 3.15.1, orbax-checkpoint 0.12.8, jax 0.10.2
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 jax==0.10.2 orbax-checkpoint==0.12.8 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=jax JAX_PLATFORMS=cpu
"$folder/env/bin/python" -W ignore - <<'PROGRAM'
import logging
from pathlib import Path

import keras
import numpy as np

logging.getLogger("absl").setLevel(logging.CRITICAL)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(8, 6)).astype("float32"), np.ones((8, 2), "float32")


def model():
    layers = [keras.Input((6,)), keras.layers.Dense(2, name="d")]
    made = keras.Sequential(layers, name="model")
    made.compile(keras.optimizers.Adam(0.1, name="adam"), "mse")
    return made


def step(of):
    """The kernel after one step more."""
    of.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    return of.get_layer("d").kernel.numpy()


saved = model()
path = Path("checkpoints").resolve()
callback = keras.callbacks.OrbaxCheckpoint(path, save_on_background=False)
saved.fit(x, y, epochs=3, batch_size=8, shuffle=False, verbose=0, callbacks=[callback])
loaded, prepared = model(), model()
prepared.optimizer.build(prepared.trainable_variables)
for one in (loaded, prepared):
    one.load_weights(path)
    print(f"steps: {int(one.optimizer.iterations)}, kernel restored:", end=" ")
    print(np.array_equal(one.get_layer("d").kernel, saved.get_layer("d").kernel))
expected = step(saved)
same = {name: bool(np.array_equal(step(one), expected)) for name, one in (
    ("optimizer as compile makes it", loaded), ("optimizer built before", prepared))}
for name, equal in same.items():
    print(f"{name}: the next step is {'the same' if equal else 'another one'}")
if list(same.values()) != [False, True] or int(loaded.optimizer.iterations) != 4:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
