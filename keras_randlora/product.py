"""The product of a layer's input with its adapted kernel, and its gradient.

Two ways give the same result. With T tokens, a kernel of sides l and s and
n·r ≈ s, counted in multiply-adds ×2:

| way | extra operations over the frozen layer, forward + backward |
|---|---|
| materialized: `x (W + M)`, M formed again for the gradient | `6 l s n r` + `2 T l s` |
| factored: `x W + (x …) …` through the two factors | `2 T n r (2 l + 3 s)` |

Both keep only the input for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras import ops

from keras_randlora.bank import BasisBank
from keras_randlora.gradient import with_gradient
from keras_randlora.layouts import KernelLayout
from keras_randlora.update import (
    UpdateShape,
    adapter_gradients,
    gradients_from_kernel,
    kernel_update,
    scaled_basis_a,
)

Array = Any


@dataclass(frozen=True)
class AdaptedProduct:
    """The product `x · (W + update)` of one layer.

    Attributes:
        layout: How the layer's kernel is read as a matrix.
        shape: Sizes of the update.
        bank: Owner of the bases.
        scale: `alpha / rank`.
    """

    layout: KernelLayout
    shape: UpdateShape
    bank: BasisBank
    scale: float

    def way(self, compute: str, tokens: int | None, dropout: bool = False) -> str:
        """Return `"materialized"` or `"factored"`, resolving `"auto"`.

        Args:
            compute: `"materialized"`, `"factored"` or `"auto"`.
            tokens: Rows of the input, `None` where unknown when traced.
            dropout: Whether the adapter sees another input than the kernel, so
                that a materialized update costs a product of its own.
        """
        if compute != "auto":
            return compute
        if tokens is None:
            return "materialized"
        materialized = self.materialized_operations(tokens, dropout)
        cheaper = self.factored_operations(tokens) < materialized
        return "factored" if cheaper else "materialized"

    def materialized_operations(self, tokens: int, dropout: bool = False) -> int:
        """Count the operations a materialized update adds to a training step.

        The input's gradient through the frozen kernel is not counted: both ways
        have it.
        """
        larger, smaller = self.shape.larger, self.shape.smaller
        forming = 6 * larger * smaller * self.shape.columns
        products = 6 if dropout else 2
        return forming + products * tokens * larger * smaller

    def factored_operations(self, tokens: int) -> int:
        """Count the operations a factored update adds to a training step."""
        larger, smaller = self.shape.larger, self.shape.smaller
        return 2 * tokens * self.shape.columns * (2 * larger + 3 * smaller)

    def update(self, lambda_: Array, gamma: Array, dtype: str) -> Array:
        """Return the update of the kernel in the kernel's own shape."""
        basis_a, basis_b = self.bank.bases(self.shape, dtype)
        matrix = kernel_update(self.shape, lambda_, gamma, basis_a, basis_b, self.scale)
        return self.layout.to_kernel(matrix)

    def materialized(
        self, inputs: Array, kernel: Array, lambda_: Array, gamma: Array
    ) -> Array:
        """Return `inputs · (kernel + update)`."""
        layout, bank, shape, scale = self.layout, self.bank, self.shape, self.scale

        def update_of(
            lambda_: Array, gamma: Array, bases: tuple[Array, Array]
        ) -> Array:
            return kernel_update(shape, lambda_, gamma, *bases, scale)

        def forward(x: Array, kernel: Array, *adapter: Array) -> Array:
            lambda_, gamma, *stored = adapter
            bases = bank.read(stored, shape, kernel.dtype)
            update = layout.to_kernel(update_of(lambda_, gamma, bases))
            return layout.apply(x, kernel + update)

        def backward(tensors: tuple[Array, ...], gradient: Array) -> tuple[Any, ...]:
            x, kernel, lambda_, gamma, *stored = tensors
            bases = bank.read(stored, shape, kernel.dtype)
            gradient = layout.output_rows(gradient, len(x.shape))
            matrix = layout.to_matrix(kernel) + update_of(lambda_, gamma, bases)
            x_gradient = ops.matmul(gradient, ops.transpose(matrix))
            kernel_gradient = ops.matmul(ops.transpose(layout.rows(x)), gradient)
            adapter = gradients_from_kernel(
                shape, kernel_gradient, lambda_, gamma, *bases, scale
            )
            frozen = (None,) * len(stored)
            return layout.from_rows(x_gradient, x), None, *adapter, *frozen

        product = with_gradient(forward, backward)
        return product(inputs, kernel, lambda_, gamma, *bank.stored())

    def factored(self, inputs: Array, lambda_: Array, gamma: Array) -> Array:
        """Return `inputs · update`, without forming the update."""
        layout, bank, shape, scale = self.layout, self.bank, self.shape, self.scale

        def scaled(lambda_: Array, gamma: Array, basis_a: Array, dtype: str) -> Array:
            stacked = scaled_basis_a(lambda_, gamma, ops.cast(basis_a, "float32"))
            return ops.cast(scale * stacked, dtype)

        def forward(x: Array, lambda_: Array, gamma: Array, *stored: Array) -> Array:
            basis_a, basis_b = bank.read(stored, shape, x.dtype)
            stacked = scaled(lambda_, gamma, basis_a, x.dtype)
            rows = layout.rows(x)
            if shape.transposed:
                inner = ops.matmul(rows, ops.transpose(stacked))
                result = ops.matmul(inner, ops.transpose(basis_b))
            else:
                result = ops.matmul(ops.matmul(rows, basis_b), stacked)
            return layout.from_output_rows(result, x)

        def backward(tensors: tuple[Array, ...], gradient: Array) -> tuple[Any, ...]:
            x, lambda_, gamma, *stored = tensors
            basis_a, basis_b = bank.read(stored, shape, x.dtype)
            stacked = scaled(lambda_, gamma, basis_a, x.dtype)
            rows = layout.rows(x)
            gradient = layout.output_rows(gradient, len(x.shape))
            if shape.transposed:
                inner = ops.matmul(gradient, basis_b)
                stacked_gradient = ops.matmul(ops.transpose(inner), rows)
                x_gradient = ops.matmul(inner, stacked)
            else:
                inner = ops.matmul(rows, basis_b)
                stacked_gradient = ops.matmul(ops.transpose(inner), gradient)
                x_gradient = ops.matmul(
                    ops.matmul(gradient, ops.transpose(stacked)),
                    ops.transpose(basis_b),
                )
            adapter = adapter_gradients(
                scale * ops.cast(stacked_gradient, "float32"),
                lambda_,
                gamma,
                ops.cast(basis_a, "float32"),
            )
            frozen = (None,) * len(stored)
            return layout.from_rows(x_gradient, x), *adapter, *frozen

        product = with_gradient(forward, backward)
        return product(inputs, lambda_, gamma, *bank.stored())
