#!/usr/bin/env bash
# Guess: in a training loop of one's own, model.train() turns the dropout of a Keras model on
#   torch on, as it does for every nn.Module.
# Really: the flag is set on every layer and read by none: model(x) computes as in inference
#   until training=True is passed. Dropout (also that of adapters) is silently off; after
#   model.eval(), training=True turns it on.
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

x = torch.ones(4, 64)


def random(module, **options):
    return not torch.equal(module(x, **options), module(x, **options))


plain = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(64, 4))
model = keras.Sequential([keras.Input((64,)), keras.layers.Dropout(0.5), keras.layers.Dense(4)])
model.train()
plain.train()
flags = model.training, model.layers[0].training
seen = [random(plain), random(model), random(model.eval(), training=True)]
print("flags of the Keras model and its Dropout after train():", flags)
print("torch.nn model in train mode: outputs random:", seen[0])
print("Keras model in train mode:    outputs random:", seen[1])
print("Keras model in eval mode with training=True:", seen[2])
as_described = seen == [True, False, True] and flags == (True, True)


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
