#!/usr/bin/env bash
# Guess: a model quantized to int4 answers the same after save and load_model: its weights come back bit for bit.
# Really: an untied ReversibleEmbedding (the head of a language model) multiplies floating-point inputs by its
#   int4 table after `quantize("int4")`, and inputs that it rounds to int8 after loading: logits change by about
#   one percent though every weight is the same. With quantize the configuration says "no activation quantizer";
#   a loaded layer has no configuration, and takes a default that Dense and EinsumDense do not have.
# Seen on 2026-12-01: keras 3.15.1 with jax 0.10.2
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 jax==0.10.2 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=jax JAX_PLATFORMS=cpu
"$folder/env/bin/python" - 2>/dev/null <<'PROGRAM'
import keras
import numpy as np

hidden = np.random.default_rng(0).standard_normal((2, 64)).astype("float32")


def change(tied):
    """Return how much loading changes the logits, and whether a weight differs."""
    keras.utils.set_random_seed(0)
    table = keras.layers.ReversibleEmbedding(50, 64, tie_weights=tied, name="table")
    ids = keras.Input((), dtype="int32")
    model = keras.Model(ids, table(ids))
    table(hidden, reverse=True)
    model.quantize("int4")
    model.save("m.keras")
    loaded = keras.saving.load_model("m.keras").get_layer("table")
    before, after = (np.asarray(one(hidden, reverse=True)) for one in (table, loaded))
    same = all(map(np.array_equal, table.get_weights(), loaded.get_weights()))
    return np.abs(after - before).max() / np.abs(before).max(), same


dense = keras.Sequential([keras.Input((64,)), keras.layers.Dense(50)])
dense.quantize("int4")
dense.save("d.keras")
of_dense = np.abs(np.asarray(keras.saving.load_model("d.keras")(hidden) - dense(hidden))).max()
untied, same = change(tied=False)
print("Dense: logits", "unchanged" if of_dense == 0 else "changed")
print("untied ReversibleEmbedding: weights", "the same," if same else "differ,", end=" ")
print("logits changed by more than 0.1 %" if untied > 1e-3 else "logits unchanged")
raise SystemExit(0 if of_dense == 0 and same and untied > 1e-3 else "loading changes nothing now")
PROGRAM
