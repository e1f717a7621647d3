#!/usr/bin/env bash
# Guess: activation checkpointing (`keras.RematScope`) on PyTorch frees the recomputed activations of a layer as soon as
#   its gradient is there, by their reference counts, as `torch.utils.checkpoint` does.
# Really: PyTorch ends a recomputation early with an exception. It passes through Keras's traceback filter, which leaves it
#   in a cycle with its frames, and these hold the activations until Python's garbage collector comes by. With the collector
#   off (a usual advice for training loops) a step with checkpointing ends with the activations of all layers alive, one
#   without it does not. `keras.config.disable_traceback_filtering()` helps, or
#   `torch.utils.checkpoint.set_checkpoint_early_stop(False)`.
# Seen on 2026-12-01: keras 3.15.1 with torch 2.13.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 torch==2.13.0 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=torch
cat > program.py <<'PROGRAM'
import contextlib
import gc

import keras
import numpy as np
import torch
from torch.utils.checkpoint import set_checkpoint_early_stop

LAYERS, WIDTH = 8, 512
data = np.ones((WIDTH, WIDTH), "float32")  # each activation is 1 MB
gc.disable()


def living():
    """Return the megabytes of all tensors."""
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values()) / 2**20


def left(remat, filtering=True, early_stop=True):
    """Return the megabytes that a forward and backward pass leave, gradients aside."""
    (keras.config.enable_traceback_filtering if filtering else keras.config.disable_traceback_filtering)()
    with keras.RematScope(mode="full") if remat else contextlib.nullcontext():
        model = keras.Sequential([keras.layers.Dense(WIDTH, activation="gelu") for _ in range(LAYERS)])
        model.build((None, WIDTH))
    gc.collect()
    with set_checkpoint_early_stop(early_stop):
        for _ in range(2):  # the second time the gradients are there
            before = living()
            loss = keras.ops.mean(model(keras.ops.convert_to_tensor(data), training=True))
            loss.backward()
            del loss
            after = living()
            gc.collect()
    return round(after - before)


found = {
    "no checkpointing": left(False),
    "checkpointing": left(True),
    "checkpointing, no traceback filter": left(True, filtering=False),
    "checkpointing, no early stop": left(True, early_stop=False),
}
for name, megabytes in found.items():
    print(f"{name}: {megabytes} MB are left after a step")
first, second, *others = found.values()
raise SystemExit(0 if first < 2 and second >= LAYERS and max(others) < 2 else "tensors are freed at once now")
PROGRAM
"$folder/env/bin/python" program.py 2>/dev/null
