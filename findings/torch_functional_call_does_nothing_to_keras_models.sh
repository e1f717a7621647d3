#!/usr/bin/env bash
# Guess: a Keras model on torch is an nn.Module, so that torch.func.functional_call computes
#   with the parameters that it is given.
# Really: Keras layers read their tensors from Keras variables and not from the module's
#   attributes. The parameters given are swapped in and out unused; the result is that of the
#   model's own weights, without an error even with strict=True. Per-sample gradients by
#   torch.func.grad over it are zero.
# Seen on 2026-11-29: keras 3.15.1, torch 2.13.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 torch==2.13.0 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=torch
"$folder/env/bin/python" - <<'PROGRAM'
import keras
import torch

model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
plain = torch.nn.Sequential(torch.nn.Linear(8, 4))
x = torch.ones(2, 8)


def with_zeros(module):
    zeros = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    return torch.func.functional_call(module, zeros, (x,), strict=True)


def gradient(module):
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    gradients = torch.func.grad(
        lambda given: torch.func.functional_call(module, given, (x,)).sum()
    )(parameters)
    return max(float(g.abs().max()) for g in gradients.values())


seen = {}
for name, module in (("torch.nn", plain), ("Keras", model)):
    seen[name] = float(with_zeros(module).abs().max()), gradient(module)
    print(f"{name}: largest output with all parameters zero {seen[name][0]:.3f}, ", end="")
    print(f"largest gradient {seen[name][1]}")
unchanged = torch.equal(with_zeros(model), model(x))
as_described = seen["torch.nn"] == (0, 2) and seen["Keras"][1] == 0 and unchanged


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
