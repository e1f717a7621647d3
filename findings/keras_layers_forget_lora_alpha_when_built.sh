#!/usr/bin/env bash
# Guess: Dense(..., lora_rank=2, lora_alpha=8) scales its update by 8 / 2, and so does a layer
#   that comes back from a .keras file, whose configuration holds lora_alpha.
# Really: building calls enable_lora(rank) without alpha, which puts alpha back to the rank: the
#   scale is 1. A model with enable_lora(2, lora_alpha=8) trains on at a quarter of its scale
#   after it was saved and opened. In the source of keras-nightly 3.16.0.dev2026102704 building
#   passes alpha on.
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

x = np.ones((1, 8), "float32")


def scale(layer):
    """The factor of the update: its matrices are set so that it is 1 where the scale is 1."""
    layer._kernel.assign(np.zeros((8, 4)))
    layer.lora_kernel_a.assign(np.full((8, 2), 0.25))
    layer.lora_kernel_b.assign(np.full((2, 4), 0.25))
    return float(np.asarray(layer(x))[0, 0])


built = keras.layers.Dense(4, use_bias=False, lora_rank=2, lora_alpha=8)
built.build((None, 8))
enabled = keras.layers.Dense(4, use_bias=False)
enabled.build((None, 8))
enabled.enable_lora(2, lora_alpha=8)
keras.Sequential([keras.Input((8,)), enabled]).save("model.keras")
opened = keras.saving.load_model("model.keras").layers[0]

print("in the configuration that is saved: lora_alpha =", enabled.get_config()["lora_alpha"])
scales = {}
for name, layer in [("enable_lora", enabled), ("constructor", built), (".keras file", opened)]:
    scales[name] = scale(layer)
    print(f"{name}: lora_alpha {layer.lora_alpha}, scale {scales[name]}")
as_described = list(scales.values()) == [4.0, 1.0, 1.0]


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
