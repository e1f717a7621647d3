#!/usr/bin/env bash
# Guess: a model quantized to int4 answers the same after save and load_model: its weights come back bit for bit.
# Really: the head of a keras-hub model (an untied ReversibleEmbedding) multiplies floating-point inputs by its int4
#   table after `quantize("int4")`, and inputs that it rounds to int8 after loading: logits change by almost one percent
#   though every weight is the same. The dtype policies of the layers are saved, their quantization configuration ("no
#   activation quantizer") is not, and this layer's default is another one. Other layers have no such default.
# Seen on 2026-12-01: keras 3.15.1, keras-hub 0.32.0 with jax 0.10.2
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 keras-hub==0.32.0 jax==0.10.2 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=jax JAX_PLATFORMS=cpu
"$folder/env/bin/python" - 2>/dev/null <<'PROGRAM'
import keras
import keras_hub
import numpy as np

keras.utils.set_random_seed(0)
sizes = dict(num_layers=1, num_query_heads=2, num_key_value_heads=2, hidden_dim=16, intermediate_dim=24)
backbone = keras_hub.models.Llama3Backbone(vocabulary_size=20, **sizes)
model = keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)
model.quantize("int4")
model.save("m.keras")
loaded = keras.saving.load_model("m.keras")
hidden = np.random.default_rng(0).standard_normal((2, 3, 16)).astype("float32")


def change(answer):
    """Return the change by loading, in shares of the largest number."""
    before, after = (np.asarray(answer(one.backbone)) for one in (model, loaded))
    return np.abs(after - before).max() / np.abs(before).max()


same = all(map(np.array_equal, model.get_weights(), loaded.get_weights()))
block = change(lambda backbone: backbone.transformer_layers[0](hidden))
head = change(lambda backbone: backbone.token_embedding(hidden, reverse=True))
print("weights:", "the same" if same else "different")
print("a block's outputs:", "the same" if block == 0 else "different")
print("the head's logits:", "different by more than 0.1 %" if head > 1e-3 else "the same")
raise SystemExit(0 if same and block == 0 and head > 1e-3 else "loading changes nothing now")
PROGRAM
