"""Merging a kernel that lies in parts on several devices, each part where it is.

Taken operation by operation the update would be formed whole on every device. Compiled
as one, with the kernel's layout for the result, each device forms its part. The stacked
`diag(λ_j) A diag(γ_j)` of a square kernel is as large as the kernel, and so may be what
is needed of B: some rows and columns of them are taken at a time.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_randlora.bases import (
    BLOCK,
    DenseOperator,
    EntrywiseBasis,
    KroneckerOperator,
    Operator,
)
from keras_randlora.layers.quantized import widened
from keras_randlora.tools import cast, keras_internals
from keras_randlora.update import BasisBank, Update, UpdateShape

if TYPE_CHECKING:
    from keras_randlora.layers.adapted import RandLoRALayer

Array = Any
_STEPS = 16
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
    factors = adapter.lambda_.value, adapter.gamma.value
    arguments = (kernel, *factors, *bank.stored())
    key = product.layout, product.shape, product.scale, kernel.dtype, kernel.sharding
    known = _COMPILED.setdefault(bank, {})
    if key not in known:
        # Nothing that the function holds may hold the bank.
        layout, shape, scale = product.layout, product.shape, product.factor
        reader, dtype = bank.reader, kernel.dtype

        def merged(kernel: Array, lambda_: Array, gamma: Array, *stored: Any) -> Array:
            matrix = layout.to_matrix(widened(kernel, dtype))
            basis_a, basis_b = reader.read(stored, shape, "float32")
            entrywise = stored and isinstance(reader.spec.kind, EntrywiseBasis)
            held = stored[1] if entrywise else None
            columns = _Columns.of(basis_b, held, shape)
            if columns is None or shape.batch is not None:
                update = (shape, lambda_, gamma, basis_a, basis_b, scale)
                matrix = matrix + Update(*update).matrix()
            else:
                factors = scale * lambda_, gamma, basis_a
                matrix = _with_update(matrix, shape, *factors, columns)
            return cast(layout.to_kernel(matrix), dtype)

        known[key] = jax.jit(merged, out_shardings=kernel.sharding)
    return known[key], arguments


class _Columns(NamedTuple):
    """What gives some columns of B.

    Attributes:
        unit: Columns that are given together.
        at: Returns those of so many units from one on, in float32.
    """

    unit: int
    at: Callable[[Array, int], Array]

    @classmethod
    def of(
        cls, basis_b: Operator, held: Array | None, shape: UpdateShape
    ) -> _Columns | None:
        """Return the columns of an operator, `None` where it only gives all.

        Args:
            basis_b: B.
            held: B as it is held, at least as large, if it is held by its entries.
            shape: Sizes of the update.
        """
        import jax

        cut = functools.partial(jax.lax.dynamic_slice_in_dim, axis=1)
        if isinstance(basis_b, DenseOperator):
            matrix = basis_b.matrix
            if held is not None:  # so that a few columns at a time are converted
                matrix = held[: shape.larger, : shape.columns]
            return cls(
                1, lambda first, count: cast(cut(matrix, first, count), "float32")
            )
        if isinstance(basis_b, KroneckerOperator):

            def at(first: Array, count: int) -> Array:
                columns = count * BLOCK
                left = cut(basis_b.left, first, count)
                part = KroneckerOperator(left, basis_b.right, basis_b.rows, columns)
                return part.dense()

            return cls(BLOCK, at)
        return None


def _with_update(
    matrix: Array,
    shape: UpdateShape,
    lambda_: Array,
    gamma: Array,
    basis_a: Array,
    columns: _Columns,
) -> Array:
    """Return a kernel matrix with its update, which is added up over columns of B.

    Row `k * n + j` of the stacked A, that goes with column `k * n + j` of B, is
    `λ[k, j] * A[k] * γ[j]`.
    """
    import jax

    numpy = jax.numpy
    units = math.ceil(shape.columns / columns.unit)
    step = math.ceil(units / _STEPS)

    def added(total: Array, number: Array) -> tuple[Array, None]:
        # The last ones begin earlier; what they would add again is zero.
        first = numpy.minimum(number * step, units - step)
        rows = first * columns.unit + numpy.arange(step * columns.unit)
        new = (rows >= number * step * columns.unit) & (rows < shape.columns)
        rows = numpy.minimum(rows, shape.columns - 1)
        factor = numpy.where(new, lambda_.ravel()[rows], 0.0)
        stacked = factor[:, None] * basis_a[rows // shape.num_bases]
        stacked = stacked * gamma[rows % shape.num_bases]
        part = columns.at(first, step)
        update = stacked.T @ part.T if shape.transposed else part @ stacked
        return total + update.astype(total.dtype), None

    total, _ = jax.lax.scan(added, matrix, numpy.arange(math.ceil(units / step)))
    return total
