#!/usr/bin/env bash
# Guess: model(x) without `training` is inference, as in predict: dropout off, batch normalization by its moving averages.
# Really: so it is, unless a preprocessing layer such as Resizing comes before a nested model. Its `training=True` by
#   default passes to every Sequential or Model called after it: their dropout and batch normalization are in training
#   mode in model(x), and in what model.export writes. A Dropout that is not in a nested model stays off, and predict
#   and model(x, training=False) are right. In keras-hub 0.32 SegFormer is built so.
# Seen on 2026-12-01: keras 3.15.1 with tensorflow-cpu 2.21.0 and jax 0.10.2
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 tensorflow-cpu==2.21.0 jax==0.10.2 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder TF_CPP_MIN_LOG_LEVEL=3 JAX_PLATFORMS=cpu
cat > program.py <<'PROGRAM'
import keras
import numpy as np

keras.utils.set_random_seed(0)
images = np.ones((2, 8, 8, 3), "float32")


def model(nested, first):
    """Return dropout, in a nested model or not, after a layer."""
    inputs = keras.Input((8, 8, 3))
    dropout = keras.layers.Dropout(0.5)
    return keras.Model(inputs, (keras.Sequential([dropout]) if nested else dropout)(first(inputs)))


def dropped(outputs):
    return bool((np.asarray(keras.ops.convert_to_numpy(outputs)) == 0).any())


found = []
for name, nested, first in [
    ("Resizing, Dropout", False, keras.layers.Resizing(4, 4)),
    ("Identity, Sequential([Dropout])", True, keras.layers.Identity()),
    ("Resizing, Sequential([Dropout])", True, keras.layers.Resizing(4, 4)),
]:
    one = model(nested, first)
    found += [dropped(one(images)), dropped(one.predict(images, verbose=0))]
    print(f"{name}: model(x) drops: {found[-2]}, predict drops: {found[-1]}")
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    one.export("saved", verbose=False)
    loaded = tf.saved_model.load("saved")
    found.append(dropped(loaded.serve(images)))
    print("the exported model drops:", found[-1])
expected = [False, False, False, False, True, False, True]
raise SystemExit(0 if found == expected[: len(found)] else "model(x) is inference now")
PROGRAM
for backend in jax tensorflow; do
  echo "$backend:"
  KERAS_BACKEND=$backend "$folder/env/bin/python" program.py 2>/dev/null
done
