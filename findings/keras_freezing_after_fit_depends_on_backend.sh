#!/usr/bin/env bash
# Guess: a layer that is frozen between two calls of fit, without another compile, is either
#   frozen or it is not, on every backend alike.
# Really: torch freezes it. TensorFlow goes on training it, in silence, while
#   trainable_variables no longer lists it. JAX raises a ValueError about optimizer_variables.
#   Compile again after each change of trainable.
# Seen on 2026-11-29: keras 3.15.1 with jax 0.10.2, torch 2.13.0, tensorflow-cpu 2.21.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 jax==0.10.2 torch==2.13.0 tensorflow-cpu==2.21.0 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder TF_CPP_MIN_LOG_LEVEL=3
"$folder/env/bin/python" - <<'PROGRAM'
import os
import subprocess
import sys

CASE = """
import keras
import numpy as np

x = np.ones((8, 1), "float32")
model = keras.Sequential(
    [keras.Input((1,)), keras.layers.Dense(1, name="base"), keras.layers.Dense(1, name="head")]
)
model.compile(keras.optimizers.SGD(0.1), "mse")
model.fit(x, 5 * x, verbose=0)
base = model.get_layer("base")
base.trainable = False
before = base.get_weights()[0]
try:
    model.fit(x, 5 * x, verbose=0)
    print("trained" if np.any(base.get_weights()[0] != before) else "frozen")
except ValueError as error:
    print("ValueError:", str(error)[:60])
"""
seen = {}
for backend in ("torch", "tensorflow", "jax"):
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    answer = subprocess.run(
        [sys.executable, "-c", CASE], env=environment, capture_output=True, text=True, check=True
    )
    seen[backend] = answer.stdout.strip().splitlines()[-1]
    print(f"{backend}: {seen[backend]}")
as_described = (
    seen["torch"] == "frozen"
    and seen["tensorflow"] == "trained"
    and seen["jax"].startswith("ValueError")
)


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
