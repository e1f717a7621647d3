#!/usr/bin/env bash
# Guess: on TensorFlow the first call of fit traces train_step once, as every later shape does,
#   and building the optimizer by hand before it changes nothing but when its slots appear.
# Really: train_step is traced twice, which doubles the wait for the first step of a large model:
#   the optimizer, and metrics given as strings, create their variables within the traced step.
#   Built before (`model.optimizer.build(model.trainable_variables)`), it is traced once; a metric
#   given as a string brings the second trace back, one given as an object does not.
# Seen on 2026-11-30: keras 3.15.1 with tensorflow-cpu 2.21.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 tensorflow-cpu==2.21.0 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3
"$folder/env/bin/python" - 2>/dev/null <<'PROGRAM'
import keras
import numpy as np


class Traced(keras.Model):
    traces = 0

    def train_step(self, data):
        Traced.traces += 1
        return super().train_step(data)


def traces(build, metrics):
    inputs = keras.Input((4,))
    model = Traced(inputs, keras.layers.Dense(3)(inputs))
    model.compile("adam", "mse", metrics=metrics)
    if build:
        model.optimizer.build(model.trainable_variables)
    Traced.traces = 0
    model.fit(np.ones((8, 4)), np.ones((8, 3)), epochs=3, verbose=0)
    return Traced.traces


seen = {}
for build in (False, True):
    for name, metrics in (
        ("no metric", []),
        ("a string", ["mae"]),
        ("an object", [keras.metrics.MeanAbsoluteError()]),
    ):
        seen[build, name] = traces(build, metrics)
        print("optimizer built before:", build, "| metric:", name, "| traces:", seen[build, name])
described = {(build, name): 2 for build, name in seen}
described[True, "no metric"] = described[True, "an object"] = 1
raise SystemExit(0 if seen == described else "fit traces otherwise now")
PROGRAM
