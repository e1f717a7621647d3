"""PEFT RandLora folders, written by hand in PEFT's layout."""

import json
import math

import numpy as np
from safetensors.numpy import save_file

RANK, ALPHA = 3, 12
WEIGHTS = "adapter_model.safetensors"
MLP_MODULES = {"fc.0": ("hidden_1", 6, 10), "fc.1": ("hidden_2", 10, 5)}
MLP_NAMES = {path: module for module, (path, _, _) in MLP_MODULES.items()}


def peft_arrays(modules, prefix="", rank=RANK, seed=0):
    """Return the arrays of a PEFT state: bases between the largest in- and output."""
    rng = np.random.default_rng(seed)
    inputs = max(size for _, size, _ in modules.values())
    outputs = max(size for _, _, size in modules.values())
    smaller, larger = sorted((inputs, outputs))
    draw = lambda *shape: rng.standard_normal(shape).astype("float32")  # noqa: E731
    tensors = {
        "base_model.randlora_A": draw(rank, 1, smaller),
        "base_model.randlora_B": draw(larger, math.ceil(smaller / rank), rank),
    }
    for module, (_, layer_inputs, layer_outputs) in modules.items():
        side = min(layer_inputs, layer_outputs)
        bases = math.ceil(side / rank)
        name = f"base_model.model.{prefix}{module}"
        tensors[f"{name}.randlora_lambda"] = 0.1 * draw(rank, bases)
        tensors[f"{name}.randlora_gamma"] = 0.1 * draw(bases, side)
    return tensors


def write(folder, tensors, **options):
    """Write an adapter folder with the options that PEFT writes."""
    folder.mkdir()
    config = {
        "peft_type": "RANDLORA",
        "r": RANK,
        "randlora_alpha": ALPHA,
        "randlora_dropout": 0.0,
        "target_modules": ["q_proj"],
        "bias": "none",
        "modules_to_save": None,
        "save_projection": True,
        "projection_prng_key": 0,
        "sparse": False,
        "very_sparse": False,
        "fan_in_fan_out": False,
    }
    text = json.dumps({**config, **options})
    (folder / "adapter_config.json").write_text(text)
    save_file(tensors, folder / WEIGHTS)
    return folder
