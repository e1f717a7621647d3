"""Adapted kernels that are formed once and multiplied by many times.

A call for each token, as in `generate`, would else form the update for each token, or
multiply by its factors. Nothing here has a gradient: it is for inference.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_randlora.layers.quantized import kernel_shape
from keras_randlora.tools import cast, free_bytes, item_size

if TYPE_CHECKING:
    from keras_randlora.layers.adapted import RandLoRALayer
    from keras_randlora.layers.adapter import RandLoRAAdapter

Array = Any
# The formed kernels may take this part of the memory that is free.
MEMORY_FRACTION = 0.5


class _Formed(threading.local):
    """Formed kernels by the `id` of the adapter; those of this thread.

    One thread may trace what another one computes with. No context variable, since
    `torch.compile` cannot trace one.
    """

    kernels: Mapping[int, Array] | None = None


_FORMED = _Formed()


@contextlib.contextmanager
def kernels_formed(layers: Sequence[RandLoRALayer]) -> Iterator[None]:
    """Form `kernel + update` of the layers once, for all products in the block.

    Quantized kernels stay as they are: in floating point they would take a multiple of
    their memory. Nothing is formed where the memory does not suffice.

    Args:
        layers: Adapted layers.
    """
    layers = [layer for layer in layers if layer.quantization_mode is None]
    free = free_bytes() if layers else None
    if free is not None and sum(map(_bytes, layers)) > MEMORY_FRACTION * free:
        layers = []
    former = _FORMED.kernels
    _FORMED.kernels = {id(layer.randlora): _formed(layer) for layer in layers}
    try:
        yield
    finally:
        _FORMED.kernels = former


def formed_kernel(adapter: RandLoRAAdapter) -> Array | None:
    """Return the kernel that was formed for an adapter, `None` outside of a block."""
    formed = _FORMED.kernels
    return None if formed is None else formed.get(id(adapter))


def _formed(layer: RandLoRALayer) -> Array:
    """Return `kernel + update` in the dtype of the layer's products."""
    return cast(layer.kernel, layer.compute_dtype)


def _bytes(layer: RandLoRALayer) -> int:
    return math.prod(kernel_shape(layer)) * item_size(layer.compute_dtype)
