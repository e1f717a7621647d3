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
import mlir_context
import numpy as np
from keras.distribution import DataParallel, LayoutMap, ModelParallel, TensorLayout
from models import compile_model

import keras_randlora as kr

BATCH, LENGTH, VOCABULARY, STEPS = 8, 6, 24, 3
GATHER = re.compile(r"= (.*) all-gather(?:-start)?\(")
OPTIONS = {
    "llama": {},
    "gemma": dict(basis="sparse", basis_storage="regenerated"),
}


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


class Spread:
    """How a run is distributed, and where its variables belong."""

    def __init__(self, run):
        self.run = run
        self.mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
        self.base_map = LayoutMap(self.mesh)
        self.distribution = DataParallel() if run.distribution == "data" else None
        if run.distribution in ("model", "sharded"):
            self.base_map = self._backbone().get_layout_map(self.mesh)
            extended = kr.layout_map(self.base_map, shard_over="model")
            sharded = run.distribution == "sharded"
            layout_map = extended if sharded else self.base_map
            self.distribution = ModelParallel(layout_map=layout_map)

    def _backbone(self):
        import keras_hub

        name = {"llama": "LlamaBackbone", "gemma": "GemmaBackbone"}[self.run.family]
        return getattr(keras_hub.models, name)

    def scope(self):
        """Return the context in which to build and train."""
        if self.distribution is None:
            return contextlib.nullcontext()
        return self.distribution.scope()

    def axes_of(self, variable):
        """Return the mesh axes along which a variable is to be divided."""
        if "randlora" not in variable.path:
            layout = self.base_map[variable.path]
            return layout.axes if layout else [None] * variable.ndim
        if self.run.distribution == "sharded" and variable.name == "gamma":
            return [None, "model"]
        if self.run.distribution == "sharded" and variable.name == "basis_b":
            return ["model", None]
        return [None] * variable.ndim

    def misplaced(self, model):
        """Return the paths of variables that do not lie on the devices as they are to.

        Those of the optimizer belong where what they are for does.
        """
        if self.distribution is None:
            return []
        found = []
        for variable in model.variables:
            layout = TensorLayout(self.axes_of(variable), self.mesh).backend_layout
            if not variable.value.sharding.is_equivalent_to(layout, variable.ndim):
                found.append(variable.path)
        return found


def batch():
    """Return the inputs and labels of one batch."""
    rng = np.random.default_rng(11)
    tokens = rng.integers(1, VOCABULARY, (BATCH, LENGTH + 1)).astype("int32")
    mask = np.ones((BATCH, LENGTH), "int32")
    return {"token_ids": tokens[:, :-1], "padding_mask": mask}, tokens[:, 1:]


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


def train(name, folder):
    """Train, save and load an adapter in one way; return what was found."""
    run = RUNS[name]
    spread = Spread(run)
    weights = folder / f"{run.family}.weights.h5"
    adapter = folder / f"{name}.safetensors"
    inputs, labels = batch()
    options = dict(batch_size=BATCH, verbose=0)
    facts = {}
    with spread.scope():
        model = build(run.family)
        if not run.adapted_first:
            model.load_weights(weights)
        model.enable_randlora(3, "all-linear", **OPTIONS[run.family])
        if run.adapted_first:
            model.load_weights(weights)
        facts["misplaced before"] = spread.misplaced(model)
        compile_model(model, weighted_metrics=[])
        before = steps_in(folder)
        history = model.fit(inputs, labels, epochs=STEPS, shuffle=False, **options)
        (step,) = steps_in(folder) - before
        facts["losses"] = history.history["loss"]
        facts["gathered"] = gathered(step.read_text(), model)
        facts["misplaced after"] = spread.misplaced(model)
        facts["whole"] = whole_on_one_device(model)
        kr.save_adapter(model, adapter)

        fresh = build(run.family)
        fresh.load_weights(weights)
        kr.load_adapter(fresh, adapter)
        trained, loaded = kr.get_adapter(model), kr.get_adapter(fresh)
        facts["loaded differently"] = [
            path for path in trained if not np.array_equal(trained[path], loaded[path])
        ]
        facts["misplaced when loaded"] = spread.misplaced(fresh)
    return facts


def steps_in(folder):
    """Return the files that hold compiled training steps."""
    return set((folder / "steps").glob("*train_step*after_optimizations.txt"))


def refusal():
    """Return what is said of a γ whose columns the mesh does not divide."""
    spread = Spread(RUNS["llama sharded"])
    with spread.scope():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8)])
        try:
            model.enable_randlora(2, "all-linear")
        except ValueError as error:
            assert not hasattr(model.layers[0], "randlora")
            return str(error)
    return None


def large_bases_are_drawn():
    """Return whether bases that Keras initializes in the way of large ones are right.

    From 250 MiB on, counted over all devices, it compiles the initializer.
    """
    with DataParallel().scope():
        inputs = keras.Input((2900,))
        model = keras.Sequential([inputs, keras.layers.Dense(2900, name="large")])
        model.enable_randlora(1000, "large")
    bank = model.layers[0].bank
    held = np.asarray(bank.basis_b.value)
    return held.nbytes * 8 > 250 * 2**20 and np.array_equal(held, bank.draw()[1])


def write_weights(family, folder):
    """Write weights so large that the loss depends on every kernel."""
    keras.utils.set_random_seed(7)
    model = build(family)
    for weight in model.weights:
        if weight.ndim > 1:
            weight.assign(10 * weight)
    model.save_weights(folder / f"{family}.weights.h5")


def main(folder):
    """Write the weights that all runs share, then run."""
    assert jax.device_count() == 8
    for family in OPTIONS:
        write_weights(family, folder)
    facts = {name: train(name, folder) for name in RUNS}
    facts["refusal"] = refusal()
    facts["large bases are drawn"] = bool(large_bases_are_drawn())
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    mlir_context.keep_one()
    main(Path(sys.argv[1]))
