"""Trains over eight simulated JAX devices for `test_distribution.py`.

Usage: python distribution_worker.py FOLDER, with XLA_FLAGS that simulate the devices
and dump compiled training steps to FOLDER/steps. Each run of `RUNS` trains the same
weights on the same batch; what it finds goes to FOLDER/facts.json.
"""

import contextlib
import json
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import keras
import numpy as np
from models import compile_model

import keras_randlora as kr

BATCH, LENGTH, VOCABULARY, STEPS = 8, 6, 24, 3
GATHER = re.compile(r"= (.*) all-gather(?:-start)?\(")


class Run(NamedTuple):
    """A model, how it is distributed, and whether it is adapted before loading."""

    family: str
    distribution: str | None
    adapted_first: bool = False


RUNS = {
    "llama": Run("llama", None),
    "llama data": Run("llama", "data"),
    "llama model": Run("llama", "model", adapted_first=True),
    "llama sharded": Run("llama", "sharded"),
    "gemma": Run("gemma", None),
    "gemma data": Run("gemma", "data", adapted_first=True),
    "gemma model": Run("gemma", "model"),
}


def build(family):
    """Return a causal language model whose kernels every axis of the mesh divides."""
    import keras_hub

    sizes = dict(
        vocabulary_size=VOCABULARY, num_layers=1, num_query_heads=4, hidden_dim=16
    )
    if family == "llama":
        backbone = keras_hub.models.LlamaBackbone(
            **sizes, num_key_value_heads=2, intermediate_dim=20
        )
        return keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
    backbone = keras_hub.models.GemmaBackbone(
        **sizes, num_key_value_heads=4, intermediate_dim=40, head_dim=6
    )
    return keras_hub.models.GemmaCausalLM(backbone, preprocessor=None)


def distribution_of(run):
    """Return the run's distribution, `None` for a single device."""
    if run.distribution in (None, "data"):
        return run.distribution and keras.distribution.DataParallel()
    import keras_hub

    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    kind = {"llama": "LlamaBackbone", "gemma": "GemmaBackbone"}[run.family]
    layout_map = getattr(keras_hub.models, kind).get_layout_map(mesh)
    if run.distribution == "sharded":
        layout_map = kr.layout_map(layout_map, shard_over="model")
    return keras.distribution.ModelParallel(layout_map=layout_map)


def batch():
    """Return the inputs and labels of one batch."""
    rng = np.random.default_rng(11)
    tokens = rng.integers(1, VOCABULARY, (BATCH, LENGTH + 1)).astype("int32")
    mask = np.ones((BATCH, LENGTH), "int32")
    return {"token_ids": tokens[:, :-1], "padding_mask": mask}, tokens[:, 1:]


def enable(model):
    """Adapt every linear layer."""
    model.enable_randlora(3, "all-linear")


def laid_out_as(variable, layout):
    """Return whether a variable lies on the devices as a layout says."""
    return variable.value.sharding.is_equivalent_to(
        layout.backend_layout, variable.ndim
    )


def misplaced(model, distribution):
    """Return the paths of kernels, adapters and bases that are not where they belong.

    Kernels belong where the base's layout map says; the rest on every device, but for
    what the run shards.
    """
    if distribution is None:
        return []
    mesh = distribution.device_mesh
    layouts = getattr(distribution, "_layout_map", {})
    found = []
    for variable in model.variables:
        layout = distribution.get_variable_layout(variable)
        if "randlora" in variable.path and type(layouts) in (
            dict,
            keras.distribution.LayoutMap,
        ):
            layout = keras.distribution.TensorLayout([None] * variable.ndim, mesh)
        if not laid_out_as(variable, layout):
            found.append(variable.path)
    return found


def kernels(model):
    """Return the kernels of the adapted layers."""
    return [
        layer._kernel for layer in model._flatten_layers() if hasattr(layer, "randlora")
    ]


def whole_on_one_device(model):
    """Return the paths of kernels that some device holds whole."""
    return [
        kernel.path
        for kernel in kernels(model)
        if any(s.data.shape == kernel.shape for s in kernel.value.addressable_shards)
    ]


def gathered(step, model):
    """Return the kernels that the compiled training step gathers whole."""
    shapes = {
        sizes(shape.split(","))
        for results in GATHER.findall(step)
        for shape in re.findall(r"\[([\d,]+)\]", results)
    }
    return [kernel.path for kernel in kernels(model) if forms(kernel) & shapes]


def forms(kernel):
    """Return the shapes that a whole kernel may take in a step."""
    shape = tuple(kernel.shape)
    cuts = range(1, len(shape))
    matrices = [(math.prod(shape[:cut]), math.prod(shape[cut:])) for cut in cuts]
    return set(map(sizes, [shape, *matrices, *(matrix[::-1] for matrix in matrices)]))


def sizes(shape):
    """Return a shape without its axes of size one."""
    return tuple(int(size) for size in shape if int(size) > 1)


def train(name, run, folder):
    """Train, save and load an adapter; return what was found."""
    distribution = distribution_of(run)
    weights = folder / f"{run.family}.weights.h5"
    adapter = folder / f"{name}.safetensors"
    inputs, labels = batch()
    options = dict(batch_size=BATCH, verbose=0)
    steps = set((folder / "steps").glob("*train_step*after_optimizations.txt"))
    with distribution.scope() if distribution else contextlib.nullcontext():
        model = build(run.family)
        if run.adapted_first:
            enable(model)
        model.load_weights(weights)
        if not run.adapted_first:
            enable(model)
        facts = {"misplaced before": misplaced(model, distribution)}
        compile_model(model, weighted_metrics=[])
        history = model.fit(inputs, labels, epochs=STEPS, shuffle=False, **options)
        facts["losses"] = history.history["loss"]
        facts["misplaced after"] = misplaced(model, distribution)
        facts["whole"] = whole_on_one_device(model)
        kr.save_adapter(model, adapter)

        fresh = build(run.family)
        fresh.load_weights(weights)
        kr.load_adapter(fresh, adapter)
        trained, loaded = kr.get_adapter(model), kr.get_adapter(fresh)
        facts["loaded differently"] = [
            path for path in trained if not np.array_equal(trained[path], loaded[path])
        ]
        compile_model(fresh, weighted_metrics=[])
        facts["loss when loaded"] = fresh.evaluate(inputs, labels, **options)
        facts["misplaced when loaded"] = misplaced(fresh, distribution)
    compiled = set((folder / "steps").glob("*train_step*after_optimizations.txt"))
    (step,) = compiled - steps
    facts["gathered"] = gathered(step.read_text(), model)
    return facts


def main(folder):
    """Write the weights that all runs share, then run."""
    assert jax.device_count() == 8
    for family in ("llama", "gemma"):
        keras.utils.set_random_seed(7)
        build(family).save_weights(folder / f"{family}.weights.h5")
    facts = {name: train(name, run, folder) for name, run in RUNS.items()}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
