"""Loops over the strips of a tensor: equal parts along one axis.

A loop of the compiler's own on JAX, one of Python on torch, which writes each strip
into the tensor itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

Array = Any


def on_cpu(tensor: Array) -> bool:
    """Return whether a tensor is computed on a processor with caches, not a GPU."""
    if keras.backend.backend() == "torch":
        return tensor.device.type == "cpu"
    import jax

    return jax.default_backend() == "cpu"


def run(count: int, body: Callable[[Any, Any], Any], state: Any) -> Any:
    """Return the state after `state = body(i, state)` for all `i` below `count`."""
    if keras.backend.backend() != "torch":
        return ops.fori_loop(0, count, body, state)
    for number in range(count):
        state = body(number, state)
    return state


def part(tensor: Array, axis: int, start: Any, size: int) -> Array:
    """Return `size` entries along an axis, from `start` on."""
    if keras.backend.backend() == "torch":
        return tensor.narrow(axis, start, size)
    shape = list(tensor.shape)
    shape[axis] = size
    return ops.slice(tensor, _starts(tensor, axis, start), shape)


def with_part(tensor: Array, axis: int, start: Any, values: Array) -> Array:
    """Return a tensor of `zeros` with values along an axis, from `start` on."""
    if keras.backend.backend() != "torch":
        return ops.slice_update(tensor, _starts(tensor, axis, start), values)
    tensor.narrow(axis, start, values.shape[axis]).copy_(values)
    return tensor


def zeros(shape: Sequence[int], dtype: str, sources: Sequence[Array]) -> Array:
    """Return zeros that `with_part` replaces.

    Args:
        shape: Their shape.
        dtype: Their dtype.
        sources: What the entries will come from: beneath `torch.vmap` a tensor takes
            in place only what is mapped over as it is.
    """
    if keras.backend.backend() != "torch":
        return ops.zeros(shape, dtype)
    import torch

    like = sum(source.detach()[(0,) * source.dim()] for source in sources)
    return like.new_zeros(tuple(shape), dtype=getattr(torch, dtype))


def _starts(tensor: Array, axis: int, start: Any) -> list[Any]:
    return [start if number == axis else 0 for number in range(len(tensor.shape))]
