#!/usr/bin/env bash
# Guess: qwix's LoraProvider says so when its module_path matches no module, as PEFT raises ValueError
#   ("Target modules ... not found in the base model"), or matches a part of a path, as PEFT's names and
#   re.search do.
# Really: module_path must match a whole path, and a misspelt one, or a name without the modules above
#   it, gives a model without LoRA, without an error or a warning: nothing is trained if only LoRAParam
#   is, everything if nnx.Param is.
# Seen on 2026-11-30: qwix 0.1.8 with flax 0.12.8 and jax 0.10.2
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile qwix==0.1.8 flax==0.12.8 jax==0.10.2 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PROGRAM'
import warnings

import jax.numpy as jnp
import qwix
from flax import nnx


class Block(nnx.Module):
    def __init__(self, rngs):
        self.query = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
        return self.query(x)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.block = Block(rngs)

    def __call__(self, x):
        return self.block(x)


seen = {}
for path in ("block/query", ".*query", "query", "block", "blok/query"):
    provider = qwix.LoraProvider(module_path=path, rank=2, alpha=4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = qwix.apply_lora_to_model(Net(nnx.Rngs(0)), provider, jnp.ones((2, 8)), rngs=nnx.Rngs(1))
    seen[path] = len(nnx.state(model, nnx.LoRAParam).flat_state())
    print(f"module_path={path!r}: {seen[path]} LoRA arrays, no UserWarning")
described = {"block/query": 2, ".*query": 2, "query": 0, "block": 0, "blok/query": 0}
raise SystemExit(0 if seen == described else "qwix finds modules otherwise now")
PROGRAM
