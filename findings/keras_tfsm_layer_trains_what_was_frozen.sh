#!/usr/bin/env bash
# Guess: a model that is exported with a frozen backbone and put into a new model by TFSMLayer
#   trains what was trainable.
# Really: every variable of the SavedModel is trainable there, the frozen ones too: Keras's
#   freezing is not in the file (the exported object's own list of trainable_variables has it,
#   which TFSMLayer does not ask). Set layer.trainable = False.
# Seen on 2026-11-29: keras 3.15.1, tensorflow-cpu 2.21.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 tensorflow-cpu==2.21.0 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3
"$folder/env/bin/python" - <<'PROGRAM'
import keras
import numpy as np

x = np.ones((4, 8), "float32")
model = keras.Sequential(
    [keras.Input((8,)), keras.layers.Dense(4, name="base"), keras.layers.Dense(4, name="adapted")]
)
model.get_layer("base").trainable = False
model.export("exported", verbose=False)
print("trainable when exported:", [v.path for v in model.trainable_variables])

reloaded = keras.layers.TFSMLayer("exported", call_endpoint="serve")
inputs = keras.Input((8,))
tuned = keras.Model(inputs, keras.layers.Dense(1, name="head")(reloaded(inputs)))
print("trainable in the layer:", [v.name for v in reloaded.trainable_weights])


def frozen_kernel():
    return next(np.array(v) for v in reloaded.weights if "base" in v.name and v.shape.rank == 2)


before = frozen_kernel()
tuned.compile(keras.optimizers.SGD(0.1), "mse")
tuned.fit(x, np.ones((4, 1), "float32"), verbose=0)
moved = float(np.abs(frozen_kernel() - before).max())
print(f"the kernel that was frozen moved by {moved:.4f}")
as_described = len(model.trainable_variables) == 2 and moved > 0


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
