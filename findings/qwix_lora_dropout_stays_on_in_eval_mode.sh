#!/usr/bin/env bash
# Guess: model.eval() turns the dropout of qwix's LoRA off, as it does with Flax's own Dropout.
# Really: qwix makes its Dropout anew in every call with deterministic=False, so that neither
#   eval() nor any other flag reaches it: evaluation and generation stay random. Build the model
#   for inference with a rule without dropout and give it the trained LoRA parameters.
# Seen on 2026-11-29: qwix 0.1.8, flax 0.12.8, jax 0.10.2
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile qwix==0.1.8 flax==0.12.8 jax==0.10.2 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PROGRAM'
import jax
import jax.numpy as jnp
import qwix
from flax import nnx


class Net(nnx.Module):
    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.projection = nnx.Linear(64, 8, rngs=rngs)

    def __call__(self, x):
        return self.projection(self.dropout(x))


def random(model):
    return not jnp.array_equal(model(x), model(x))


x = jnp.ones((4, 64))
plain = Net(nnx.Rngs(0))
rule = qwix.LoraProvider(module_path="projection", rank=4, alpha=8.0, dropout=0.5)
tuned = qwix.apply_lora_to_model(Net(nnx.Rngs(0)), rule, x, rngs=nnx.Rngs(1))
tuned.set_attributes(qwix_rngs=nnx.Rngs(2))
nnx.update(tuned, jax.tree.map(jnp.ones_like, nnx.state(tuned, nnx.LoRAParam)))

seen = {}
for mode in ("train", "eval"):
    for model in (plain, tuned):
        getattr(model, mode)()
    seen[mode] = random(plain), random(tuned)
    print(f"{mode}(): outputs random: with Flax's Dropout {seen[mode][0]}, with LoRA {seen[mode][1]}")
as_described = seen == {"train": (True, True), "eval": (False, True)}


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
