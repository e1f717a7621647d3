#!/usr/bin/env bash
# Guess: a layer built in keras.RematScope() trains as it does without, on each backend, and a
#   step costs one more forward pass at the most.
# Really: on TensorFlow fit refuses any layer whose call has an option, which a Dense has
#   (custom_gradient takes keyword arguments only when run eagerly). Run eagerly it works, but each
#   level of models within models adds a forward pass: four layers are called 12 times in a step,
#   and 28 times four levels deeper. On JAX the scope makes the option `training` a tracer: Dropout
#   and BatchNormalization end with "'str' object has no attribute '_error_repr'". On torch all
#   three train, and the depth costs nothing.
# Seen on 2026-12-01: keras 3.15.1, tensorflow-cpu 2.21.0, jax 0.10.2, torch 2.13.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 tensorflow-cpu==2.21.0 jax==0.10.2 \
  torch==2.13.0 numpy==2.4.6
cd "$folder"
cat > program.py <<'PROGRAM'
import json
import sys

import keras
import numpy as np

x = np.ones((2, 4), "float32")
KINDS = {
    "Dense": lambda: keras.layers.Dense(4),
    "Dropout": lambda: keras.layers.Dropout(0.1),
    "BatchNormalization": lambda: keras.layers.BatchNormalization(),
}


def outcome(kind):
    with keras.RematScope(mode="full"):
        layer = KINDS[kind]()
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(4)])
    model.compile("sgd", "mse")
    try:
        model.fit(x, x, verbose=0)
    except (RuntimeError, ValueError) as error:
        for cause in ("keywords arguments only when eager", "'_error_repr'"):
            if cause in str(error):
                return f"fails: {cause}"
        raise
    return "trains"


class Counted(keras.layers.Layer):
    calls = 0

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]))

    def call(self, inputs):
        Counted.calls += 1
        return keras.ops.tanh(inputs @ self.kernel)


def calls_of_a_step(depth):
    """Calls of four layers in a step, that many models deeper, run eagerly."""
    with keras.RematScope(mode="full"):
        model = keras.Sequential([Counted() for _ in range(4)])
        for _ in range(depth):
            model = keras.Sequential([model])
        model.build((None, 4))
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(x, x, verbose=0)
    Counted.calls = 0
    model.fit(x, x, verbose=0)
    return Counted.calls


seen = {kind: outcome(kind) for kind in KINDS}
if keras.backend.backend() != "jax":  # where Python's calls are those of the trace
    seen["calls"] = [calls_of_a_step(depth) for depth in (0, 2, 4)]
print(json.dumps(seen))
PROGRAM
cat > expected.json <<'EXPECTED'
{"Dense": "fails: keywords arguments only when eager", "Dropout": "fails: keywords arguments only when eager", "BatchNormalization": "fails: keywords arguments only when eager", "calls": [12, 20, 28]}
{"Dense": "trains", "Dropout": "fails: '_error_repr'", "BatchNormalization": "fails: '_error_repr'"}
{"Dense": "trains", "Dropout": "trains", "BatchNormalization": "trains", "calls": [11, 11, 11]}
EXPECTED
export KERAS_HOME=$folder TF_CPP_MIN_LOG_LEVEL=3
for backend in tensorflow jax torch; do
  KERAS_BACKEND=$backend "$folder/env/bin/python" program.py 2> "$folder/errors" |
    tail -n 1 > line || { cat "$folder/errors"; exit 1; }
  echo "$backend: $(cat line)"
  cat line >> seen.json
done
cmp seen.json expected.json || { echo "CHANGED: the behaviour is another one now"; exit 1; }
echo "as described"
