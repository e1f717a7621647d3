"""The bytes that a training step allocates at its peak, as the backend counts them.

Weights are not among them. JAX's compiler plans the memory of a step; on torch every
tensor that an operation allocates is counted as long as it lives. Both are exact and
the same each time, which the resident size of a process is not. TensorFlow offers
neither.
"""

import contextlib
import gc

import keras
import numpy as np
from keras import ops


def next_token_batch(batch, sequence, vocabulary):
    """Return inputs of a causal language model, and labels."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, vocabulary, (batch, sequence)).astype("int32")
    return {"token_ids": ids, "padding_mask": np.ones_like(ids)}, ids


def step_peak(model, inputs, labels, collected=True):
    """Return the bytes that forward and backward pass of one step need at most.

    Args:
        model: The model.
        inputs: Its inputs, a dict of arrays.
        labels: Classes.
        collected: Whether Python's garbage collector runs, which only torch waits for.
    """
    if keras.backend.backend() == "jax":
        return _jax(model, inputs, labels)
    return _torch(model, inputs, labels, collected)


@contextlib.contextmanager
def _collected(collected):
    """Let the garbage collector run or not within the block."""
    before = gc.isenabled()
    gc.collect()
    (gc.enable if collected else gc.disable)()
    try:
        yield
    finally:
        (gc.enable if before else gc.disable)()


def _loss(labels, outputs):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, outputs)


def _jax(model, inputs, labels):
    import jax

    def loss(trained, frozen, inputs, labels):
        outputs, _ = model.stateless_call(trained, frozen, inputs, training=True)
        return _loss(labels, outputs)

    variables = model.trainable_variables, model.non_trainable_variables
    arguments = [[variable.value for variable in group] for group in variables]
    arguments += [inputs, labels]
    step = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
    memory = step.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def _torch(model, inputs, labels, collected):
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Allocations(TorchDispatchMode):
        """Sums the bytes of the storages that operations have made and that live."""

        def __init__(self):
            super().__init__()
            self.living, self.peak = {}, 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            given = {self._key(t) for t in tree_leaves((args, kwargs or {}))}
            outputs = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(outputs):
                key = self._key(tensor)
                if key and key not in given and key not in self.living:
                    storage = tensor.untyped_storage()
                    self.living[key] = StorageWeakRef(storage), storage.nbytes()
            self.living = {k: v for k, v in self.living.items() if not v[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.living.values()))
            return outputs

        @staticmethod
        def _key(value):
            storage = getattr(value, "untyped_storage", None)
            return storage and storage()._cdata

    inputs = {name: ops.convert_to_tensor(value) for name, value in inputs.items()}
    labels = ops.convert_to_tensor(labels)
    with Allocations() as allocations, _collected(collected):
        outputs = model(inputs, training=True)
        _loss(labels, outputs).backward()
    for variable in model.trainable_variables:
        variable.value.grad = None
    return allocations.peak
