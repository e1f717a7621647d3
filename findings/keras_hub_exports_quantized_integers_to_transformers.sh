#!/usr/bin/env bash
# Guess: export_to_transformers of an int8 model dequantizes its kernels, or refuses.
# Really: it writes the integers as if they were the weights, without the scales: whole numbers up to 127, of type
#   int8, under the names of the float weights. No error, no warning.
# Seen on 2026-12-01: keras-hub 0.32.0, keras 3.15.1 with jax 0.10.2
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 keras-hub==0.32.0 jax==0.10.2 numpy==2.4.6 safetensors==0.8.0
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=jax JAX_PLATFORMS=cpu
"$folder/env/bin/python" - 2>/dev/null <<'PROGRAM'
import keras_hub
import numpy as np
from safetensors.numpy import load_file

backbone = keras_hub.models.Llama3Backbone(
    vocabulary_size=20, num_layers=1, num_query_heads=2, num_key_value_heads=2, hidden_dim=16, intermediate_dim=24
)
backbone.export_to_transformers("float")
backbone.quantize("int8")
backbone.export_to_transformers("int8")
name = "model.layers.0.mlp.up_proj.weight"
arrays = [next(v for k, v in load_file(f"{kind}/model.safetensors").items() if k in name) for kind in ("float", "int8")]
for kind, array in zip(("float", "int8"), arrays):
    whole = bool((array == np.round(array)).all())
    print(f"{kind}: {array.dtype}, whole numbers: {whole}, largest {np.abs(array).max():.3g}")
integers = (arrays[1] == np.round(arrays[1])).all() and np.abs(arrays[1]).max() > 100
raise SystemExit(0 if integers and np.abs(arrays[0]).max() < 1 else "the integers are dequantized now")
PROGRAM
