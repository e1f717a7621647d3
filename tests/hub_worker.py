"""Runs hub commands for `files/test_hub.py`: the endpoint is read on import.

Usage: python hub_worker.py FOLDER, with lines of JSON on stdin: a step's name and its
arguments. Each answers with a line of JSON: a value, or the kind and text of the error.
"""

import json
import sys
import time
from pathlib import Path

import keras
import numpy as np
from models import EXAMPLES, moved_adapter

import keras_randlora as kr
from keras_randlora import cli
from keras_randlora.files.hub import upload_files

FOLDER = Path(sys.argv[1])
FILE = str(FOLDER / "local.safetensors")
MODULES = {"hidden_1": "net.0", "hidden_2": "net.1", "head": "net.2"}


def plain():
    return EXAMPLES["mlp"].build()


def equal(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def loaded(address):
    """Load an adapter and say whether it is the local one."""
    model = plain()
    kr.load_adapter(model, address)
    expected = plain()
    kr.load_adapter(expected, FILE)
    return equal(kr.get_adapter(model).values(), kr.get_adapter(expected).values())


def save():
    """Save the local adapter and its PEFT folder."""
    model = plain()
    kr.enable_randlora(model, rank=2, targets="all-linear", train_bias="none")
    kr.set_adapter(model, moved_adapter(model, 3))
    kr.save_adapter(model, FILE)
    kr.peft.save(model, FOLDER / "peft", name_map=MODULES)
    return sorted(path.name for path in (FOLDER / "peft").iterdir())


def upload_peft(uri):
    files = {p.name: p.read_bytes() for p in (FOLDER / "peft").iterdir()}
    return upload_files(uri, files, "A PEFT folder")


def load_peft(uri):
    return kr.peft.load(plain(), uri, name_map=MODULES).trainable


def merge(uri):
    model, expected = plain(), plain()
    kr.merge_adapters(model, {uri: 0.5})
    kr.merge_adapters(expected, {FILE: 0.5})
    return equal(model.get_weights(), expected.get_weights())


STEPS = {
    "save": save,
    "upload": lambda uri, **card: kr.upload_adapter(uri, FILE, **card),
    "load": loaded,
    "merge": merge,
    "upload_peft": upload_peft,
    "load_peft": load_peft,
    "save_there": lambda uri: kr.save_adapter(plain(), uri),
    "info": lambda uri: cli.main(["info", uri]),
    "command": lambda uri: cli.main(["upload", FILE, uri]),
}

if __name__ == "__main__":
    keras.utils.set_random_seed(0)
    # Without a network huggingface_hub else waits 23 seconds between its attempts.
    time.sleep = lambda seconds: None
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        card = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
        try:
            answer = {"value": STEPS[name](*arguments, **card)}
        except Exception as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        print("ANSWER " + json.dumps(answer), flush=True)
