#!/usr/bin/env bash
# Guess: a model that was trained is freed with `del model`, `gc.collect()` and `keras.utils.clear_session()`, as one that
#   only predicted.
# Really: on TensorFlow the graph of each training step stays for ever: the optimizer sums the gradients with
#   `ReplicaContext.all_reduce`, a `tf.custom_gradient`, whose gradient TensorFlow registers under a new name and never
#   forgets; it holds the graph, and the graph the weights. With `run_eagerly=True`, and after `predict` alone, nothing stays.
# Seen on 2026-12-01: keras 3.15.1 with tensorflow-cpu 2.21.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 tensorflow-cpu==2.21.0 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3
cat > program.py <<'PROGRAM'
import gc
import os

import keras
import numpy as np
from tensorflow.python.framework.func_graph import FuncGraph

MODELS, WIDTH = 5, 2000  # a kernel of 16 MB
data = np.ones((1, WIDTH), "float32")


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def life(use):
    """Build, use and drop a model."""
    model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(WIDTH)])
    model.compile("sgd", "mse", run_eagerly=use == "fit, eager")
    if use == "predict":
        model.predict(data, verbose=0)
    else:
        model.fit(data, data, verbose=0)
    del model
    keras.utils.clear_session()
    gc.collect()


found = []
for use in ("predict", "fit, eager", "fit"):
    life(use)
    graphs = sum(isinstance(one, FuncGraph) for one in gc.get_objects())
    before = resident()
    for _ in range(MODELS):
        life(use)
    left = sum(isinstance(one, FuncGraph) for one in gc.get_objects()) - graphs
    found.append(left)
    print(f"{use}: {left} graphs of {MODELS} models are left, memory grew by {resident() - before:.0f} MB")
raise SystemExit(0 if found == [0, 0, MODELS] else "trained models are freed now")
PROGRAM
"$folder/env/bin/python" program.py 2>/dev/null
