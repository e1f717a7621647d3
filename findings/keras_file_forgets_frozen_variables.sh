#!/usr/bin/env bash
# Guess: a variable that was frozen by variable.trainable = False is frozen in the model that
#   comes back from a .keras file; layer.trainable = False is.
# Really: the flag of a variable is not in the file. The variable comes back trainable without a
#   word, and the next fit trains it. clone_model forgets it too. Freeze again after loading.
# Seen on 2026-11-29: keras 3.15.1, jax 0.10.2 (the code is the same for every backend)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 jax==0.10.2 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=jax
"$folder/env/bin/python" - <<'PROGRAM'
import keras
import numpy as np

x = np.ones((4, 8), "float32")
y = np.ones((4, 2), "float32")
model = keras.Sequential(
    [
        keras.Input((8,)),
        keras.layers.Dense(4, name="by_variable"),
        keras.layers.Dense(2, name="by_layer"),
    ]
)
model.get_layer("by_variable").kernel.trainable = False
model.get_layer("by_layer").trainable = False
model.save("model.keras")


def trained(model):
    """The variables that a fit changes."""
    before = [np.array(v) for v in model.variables]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(x, y, verbose=0)
    return [v.path for v, b in zip(model.variables, before) if np.any(np.array(v) != b)]


cases = {
    "the model itself": model,
    "loaded from its .keras file": keras.saving.load_model("model.keras"),
    "clone_model": keras.models.clone_model(model),
}
seen = []
for name, case in cases.items():
    seen.append(["/".join(path.split("/")[-2:]) for path in trained(case)])
    print(f"{name}: fit trains {seen[-1]}")
frozen, thawed = ["by_variable/bias"], ["by_variable/kernel", "by_variable/bias"]
as_described = [sorted(s) for s in seen] == [frozen, sorted(thawed), sorted(thawed)]


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
