"""The product of a layer's input with its adapted kernel, and its gradient.

Two ways give the same result. With T tokens, a kernel of sides l and s and
n·r ≈ s, counted in multiply-adds ×2:

| way | extra operations over the frozen layer, forward + backward |
|---|---|
| materialized: `x (W + M)`, M formed again for the gradient | `3 s b` + `2 T l s` |
| factored: `x W + (x …) …` through the two factors | `2 T b` + `6 T n r s` |

`b` is what a product of B with one column costs, `2 l n r` for a dense one. Both keep
only the input for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras_randlora.arrays import cast, transpose
from keras_randlora.bank import BasisBank
from keras_randlora.gradient import computed_after, with_gradient
from keras_randlora.layouts import KernelLayout
from keras_randlora.update import (
    UpdateShape,
    adapter_gradients,
    gradients_from_update,
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

    @property
    def factor(self) -> float:
        """What the product of the bases is multiplied by."""
        return self.scale * self.bank.pair_scale

    def materialized_operations(self, tokens: int, dropout: bool = False) -> int:
        """Count the operations a materialized update adds to a training step.

        The input's gradient through the frozen kernel is not counted: both ways
        have it.
        """
        shape = self.shape
        forming = 3 * shape.smaller * self.bank.operations(shape)
        products = 6 if dropout else 2
        return forming + products * tokens * shape.larger * shape.smaller

    def factored_operations(self, tokens: int) -> int:
        """Count the operations a factored update adds to a training step."""
        shape = self.shape
        through_a = 6 * shape.columns * shape.smaller
        return tokens * (2 * self.bank.operations(shape) + through_a)

    def update(self, lambda_: Array, gamma: Array, dtype: str) -> Array:
        """Return the update of the kernel in the kernel's own shape."""
        bases = self.bank.read(self.bank.stored(), self.shape, dtype)
        matrix = kernel_update(self.shape, lambda_, gamma, *bases, self.factor)
        return self.layout.to_kernel(matrix)

    def materialized(
        self, inputs: Array, kernel: Array, lambda_: Array, gamma: Array
    ) -> Array:
        """Return `inputs · (kernel + update)`."""
        layout, bank, shape, scale = self.layout, self.bank, self.shape, self.factor

        def forward(x: Array, kernel: Array, *adapter: Array) -> Array:
            lambda_, gamma, *stored = adapter
            lambda_ = computed_after(x, lambda_)
            bases = bank.read(stored, shape, kernel.dtype, after=x)
            update = kernel_update(shape, lambda_, gamma, *bases, scale)
            return layout.apply(x, kernel + layout.to_kernel(update))

        def backward(tensors: tuple[Array, ...], gradient: Array) -> tuple[Any, ...]:
            x, kernel, lambda_, gamma, *stored = tensors
            lambda_ = computed_after(gradient, lambda_)
            gamma = computed_after(gradient, gamma)
            bases = bank.read(stored, shape, kernel.dtype, after=gradient)
            update = kernel_update(shape, lambda_, gamma, *bases, scale)
            gradient = layout.output_rows(gradient, len(x.shape))
            x_gradient = gradient @ transpose(layout.to_matrix(kernel) + update)
            rows = layout.rows(x)
            # The gradient of M, which is the kernel's or its transpose.
            larger, smaller = (gradient, rows) if shape.transposed else (rows, gradient)
            update_gradient = transpose(larger) @ smaller
            adapter = gradients_from_update(
                update_gradient, lambda_, gamma, *bases, scale
            )
            x_gradient = layout.from_rows(x_gradient, x)
            return x_gradient, None, *adapter, *(None,) * len(stored)

        product = with_gradient(forward, backward)
        return product(inputs, kernel, lambda_, gamma, *bank.stored())

    def factored(self, inputs: Array, lambda_: Array, gamma: Array) -> Array:
        """Return `inputs · update`, without forming the update."""
        layout, bank, shape, scale = self.layout, self.bank, self.shape, self.factor

        def scaled(lambda_: Array, gamma: Array, basis_a: Array, dtype: str) -> Array:
            basis_a = cast(basis_a, "float32")
            return cast(scaled_basis_a(scale * lambda_, gamma, basis_a), dtype)

        def forward(x: Array, lambda_: Array, gamma: Array, *stored: Array) -> Array:
            lambda_ = computed_after(x, lambda_)
            basis_a, basis_b = bank.read(stored, shape, x.dtype, after=x)
            stacked = scaled(lambda_, gamma, basis_a, x.dtype)
            columns = transpose(layout.rows(x))
            if shape.transposed:
                inner = stacked @ columns
                rows = basis_b.expand_transposed(inner)
            else:
                inner = basis_b.project(columns)
                rows = transpose(inner) @ stacked
            return layout.from_output_rows(rows, x)

        def backward(tensors: tuple[Array, ...], gradient: Array) -> tuple[Any, ...]:
            x, lambda_, gamma, *stored = tensors
            lambda_ = computed_after(gradient, lambda_)
            gamma = computed_after(gradient, gamma)
            basis_a, basis_b = bank.read(stored, shape, x.dtype, after=gradient)
            stacked = scaled(lambda_, gamma, basis_a, x.dtype)
            rows = layout.rows(x)
            gradient = layout.output_rows(gradient, len(x.shape))
            if shape.transposed:
                inner = basis_b.project(transpose(gradient))
                stacked_gradient = inner @ rows
                x_gradient = transpose(inner) @ stacked
            else:
                inner = basis_b.project(transpose(rows))
                stacked_gradient = inner @ gradient
                x_gradient = basis_b.expand_transposed(stacked @ transpose(gradient))
            adapter = adapter_gradients(
                stacked_gradient, lambda_, gamma, basis_a, scale
            )
            x_gradient = layout.from_rows(x_gradient, x)
            return x_gradient, *adapter, *(None,) * len(stored)

        product = with_gradient(forward, backward)
        return product(inputs, lambda_, gamma, *bank.stored())
