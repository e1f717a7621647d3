#!/usr/bin/env bash
# Guess: a .lora.h5 file of keras-hub knows which layers it was made for: loading restores the
#   tuned model or fails.
# Really: the file holds the rank and matrices under positions in the list of layers, no names
#   or targets. load_lora_weights enables the default layers, or takes those that are enabled,
#   and reads only their entries: what else the file holds is dropped without a word, and the
#   outputs are others. Where an entry is missing, a bare KeyError comes after the model was
#   already adapted.
# Seen on 2026-11-29: keras-hub 0.32.0, keras 3.15.1, jax 0.10.2
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 jax==0.10.2 numpy==2.4.6 regex==2026.11.15 kagglehub==1.0.2 sentencepiece==0.2.3 tokenizers==0.23.3
# Alone: its dependencies bring the whole of TensorFlow, which nothing here needs.
"$folder/env/bin/pip" install -qq --no-compile --no-deps keras-hub==0.32.0
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=jax
"$folder/env/bin/python" - <<'PROGRAM'
import keras
import keras_hub
import numpy as np

tokens = {"token_ids": np.arange(8)[None], "padding_mask": np.ones((1, 8), "int32")}


def backbone():
    keras.utils.set_random_seed(0)
    sizes = {"vocabulary_size": 32, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32}
    return keras_hub.models.Llama3Backbone(num_query_heads=2, num_key_value_heads=1, **sizes)


def off(targets):
    """How far the outputs of a loaded file are off, over the change by the update."""
    tuned = backbone()
    base = tuned.predict(tokens, verbose=0)
    tuned.enable_lora(4, target_layer_names=targets)
    for variable in tuned.trainable_variables:
        variable.assign(keras.random.normal(variable.shape, stddev=0.3))
    outputs = tuned.predict(tokens, verbose=0)
    tuned.save_lora_weights("tuned.lora.h5")
    other = backbone()
    try:
        other.load_lora_weights("tuned.lora.h5")
    except KeyError as error:
        return f"KeyError: {error}, with {len(other.trainable_variables)} LoRA matrices enabled"
    difference = np.abs(other.predict(tokens, verbose=0) - outputs).max()
    return round(float(difference / np.abs(outputs - base).max()), 3)


seen, ffn = {}, "feedforward_intermediate_dense"
for targets in (["query", "value"], ["query", "value", ffn], ["key"]):
    seen[len(targets)] = off(targets)
    print(f"saved with {targets}; loaded into the plain model, off by: {seen[len(targets)]}")
as_described = seen[2] == 0 and seen[3] > 0.01 and str(seen[1]).startswith("KeyError")


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
