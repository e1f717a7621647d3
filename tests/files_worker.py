"""Loads adapters into fresh models for `test_files.py`, in a process of its own.

Usage: python files_worker.py FOLDER. For each `NAME.safetensors` in it, the base
weights come from `NAME_base.npz`; the adapter as this process has it and the logits go
to `NAME_loaded.npz`.
"""

import sys
from pathlib import Path

import numpy as np
from models import EXAMPLES

import keras_randlora as kr


def load(folder, name):
    """Load one adapter and write what came of it."""
    model = EXAMPLES[name].build()
    with np.load(folder / f"{name}_base.npz") as base:
        model.set_weights([base[key] for key in base])
    kr.load_adapter(model, folder / f"{name}.safetensors")
    outputs = EXAMPLES[name].outputs(model)
    np.savez(folder / f"{name}_loaded.npz", outputs=outputs, **kr.get_adapter(model))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    for file in sorted(place.glob("*.safetensors")):
        load(place, file.stem)
