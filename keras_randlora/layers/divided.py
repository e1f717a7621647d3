"""Merging a kernel that lies in parts on several devices, each part where it is.

Taken operation by operation the update would be formed whole on every device. Compiled
as one, with the kernel's layout for the result, each device forms its part.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from keras import ops

from keras_randlora.layers.quantized import widened
from keras_randlora.tools import cast, keras_internals
from keras_randlora.update import BasisBank, kernel_update

if TYPE_CHECKING:
    from keras_randlora.layers.adapted import RandLoRALayer

Array = Any
# Compiled once for layers of the same sizes; gone with the bases that they share.
_COMPILED: weakref.WeakKeyDictionary[BasisBank, dict[Any, Callable[..., Array]]]
_COMPILED = weakref.WeakKeyDictionary()


def merged_in_parts(layer: RandLoRALayer) -> Array:
    """Return `kernel + update` of a layer, laid out as its kernel.

    Args:
        layer: An adapted layer on JAX, whose kernel is in floating point.
    """
    merge, arguments = merger(layer)
    return merge(*arguments)


def merger(layer: RandLoRALayer) -> tuple[Callable[..., Array], tuple[Array, ...]]:
    """Return a compiled function that merges a layer, and its arguments."""
    import jax

    adapter = layer.randlora
    product, bank = adapter.product, adapter.bank
    kernel = keras_internals.kernel_variable(layer).value
    arguments = (
        kernel,
        ops.convert_to_tensor(adapter.lambda_),
        ops.convert_to_tensor(adapter.gamma),
        *bank.stored(),
    )
    key = product.layout, product.shape, product.scale, kernel.dtype, kernel.sharding
    known = _COMPILED.setdefault(bank, {})
    if key not in known:
        # Nothing that the function holds may hold the bank.
        layout, shape, scale = product.layout, product.shape, product.factor
        reader, dtype = bank.reader, kernel.dtype

        def merged(kernel: Array, lambda_: Array, gamma: Array, *stored: Any) -> Any:
            bases = reader.read(stored, shape, "float32")
            update = kernel_update(shape, lambda_, gamma, *bases, scale)
            added = ops.add(widened(kernel, dtype), layout.to_kernel(update))
            return cast(added, dtype)

        known[key] = jax.jit(merged, out_shardings=kernel.sharding)
    return known[key], arguments
