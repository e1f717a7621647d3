"""The product of a layer's input with its adapted kernel, and its gradient.

The update is computed in one of two ways, with equal results. With T tokens, a kernel
of sides l and s and n·r ≈ s, counted in multiply-adds ×2:

| way | extra operations over the frozen layer, forward + backward |
|---|---|
| materialized: `x (W + M)`, M formed again for the gradient | `3 s b` + `2 T l s` |
| factored: `x W + (x …) …` through the two factors | `2 T b` + `6 T n r s` |

`b` is what a product of B with one column costs, `2 l n r` for a dense one. Both keep
only the input for the backward pass: a quantized kernel is dequantized again there.

A kernel that other code reads, and a batch of them, is `W + M` as a tensor: what
multiplies by it keeps it for the backward pass, as it would keep a plain kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_randlora.layers.quantized import FrozenKernel, QuantizedKernel
from keras_randlora.tools import cast, transpose
from keras_randlora.update import (
    BasisBank,
    KernelLayout,
    Update,
    UpdateShape,
    adapted_kernel,
    adapted_matrix,
    adapter_gradients,
    computed_after,
    gradients_of_matrix,
    gradients_of_product,
    scaled_basis_a,
    with_gradient_of_kind,
)

Array = Any
# What `auto` adds to the operations for each entry that passes through memory several
# times: of the update, and of the tokens' inputs, outputs and inner products. Fitted to
# `benchmarks/results/single_layer.json`.
ENTRY_OF_UPDATE = 400
ENTRY_OF_TOKENS = 350


@dataclass(frozen=True)
class AdaptedProduct:
    """The product `x · (W + update)` of one layer.

    Attributes:
        layout: How the layer's kernel is read as a matrix.
        kernel: Storage of the frozen kernel.
        shape: Sizes of the update.
        bank: Owner of the bases.
        scale: `alpha / rank`.
    """

    layout: KernelLayout
    kernel: FrozenKernel
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
        if self.layout.equation is None or self.layout.batch is not None:
            return "materialized"
        if compute != "auto":
            return compute
        if tokens is None:
            return "materialized"
        shape = self.shape
        features = shape.larger + shape.smaller + shape.columns
        materialized = self.materialized_operations(tokens, dropout)
        materialized += ENTRY_OF_UPDATE * shape.larger * shape.smaller
        factored = (
            self.factored_operations(tokens) + ENTRY_OF_TOKENS * tokens * features
        )
        return "factored" if factored < materialized else "materialized"

    @property
    def factor(self) -> float:
        """Scale of the product of the bases."""
        return self.scale * self.bank.pair_scale

    def takes_sparse(self, inputs: Array) -> bool:
        """Return whether a plain layer accepts this sparse input."""
        in_floats = not isinstance(self.kernel, QuantizedKernel)
        return self.layout.is_matmul and in_floats and len(inputs.shape) == 2

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
        update = Update(self.shape, lambda_, gamma, *bases, self.factor)
        return adapted_kernel(update, None, self.layout)

    def frozen(self, held: Sequence[Array]) -> Array:
        """Return the frozen kernel in floating point, in its own shape."""
        return self.kernel.dense(held, _float_dtype(held[0]))

    def kernel_with_update(
        self, held: Sequence[Array], lambda_: Array, gamma: Array
    ) -> Array:
        """Return `kernel + update` in the kernel's own shape.

        The gradient of λ and γ is formed from the kernel's, and nothing of the kernel's
        size is kept for it.

        Args:
            held: The tensors that hold the frozen kernel.
            lambda_: λ of shape `(r, n)`, float32.
            gamma: γ of shape `(n, s)`, float32.
        """
        layout, shape, scale = self.layout, self.shape, self.factor
        frozen, reader = self.kernel, self.bank.reader
        count, dtype = len(held), _float_dtype(held[0])

        def forward(lambda_: Array, gamma: Array, *others: Array) -> Array:
            held, stored = others[:count], others[count:]
            bases = reader.read(stored, shape, dtype)
            update = Update(shape, lambda_, gamma, *bases, scale)
            return adapted_kernel(update, frozen.dense(held, dtype), layout)

        def backward(tensors: tuple[Array, ...], gradient: Array) -> tuple[Any, ...]:
            lambda_, gamma, *others = tensors
            stored = others[count:]
            bases = reader.read(stored, shape, dtype, after=gradient)
            update = Update(shape, lambda_, gamma, *bases, scale)
            return gradients_of_matrix(update, layout.to_matrix(cast(gradient, dtype)))

        product = self._with_gradient(forward, backward, 2, count)
        return product(lambda_, gamma, *held, *self.bank.stored())

    def base(self, inputs: Array, held: Sequence[Array]) -> Array:
        """Return `inputs · kernel`.

        Args:
            inputs: The layer's input.
            held: The tensors that hold the frozen kernel.
        """
        layout, frozen = self.layout, self.kernel
        if layout.batch is not None:
            return self.with_kernel(inputs, self.frozen(held))

        def forward(x: Array, *held: Array) -> Array:
            kernel = cast(_base_kernel(frozen, held, x, after=x), _dtype(x))
            return layout.apply(frozen.seen(x), kernel)

        def backward(tensors: tuple[Array, ...], gradient: Array) -> tuple[Any, ...]:
            x, *held = tensors
            kernel = cast(_base_kernel(frozen, held, x, after=gradient), _dtype(x))
            gradient = layout.output_rows(gradient, len(x.shape))
            x_gradient = gradient @ transpose(layout.to_matrix(kernel))
            return (layout.from_rows(x_gradient, x),)

        product = self._with_gradient(forward, backward, 1, len(held))
        return product(inputs, *held)

    def with_kernel(self, inputs: Array, kernel: Array) -> Array:
        """Return the product of the inputs with a given kernel."""
        seen = self.kernel.seen(inputs)
        return self.layout.apply(seen, cast(kernel, _dtype(inputs)))

    def materialized(
        self, inputs: Array, held: Sequence[Array], lambda_: Array, gamma: Array
    ) -> Array:
        """Return `inputs · (kernel + update)`, without `held` `inputs · update`.

        Args:
            inputs: The layer's input.
            held: The tensors that hold the frozen kernel, or none.
            lambda_: λ of shape `(r, n)`, float32.
            gamma: γ of shape `(n, s)`, float32.
        """
        layout, shape, scale = self.layout, self.shape, self.factor
        frozen, reader, count = self.kernel, self.bank.reader, len(held)

        def forward(x: Array, lambda_: Array, gamma: Array, *others: Array) -> Array:
            held, stored = others[:count], others[count:]
            lambda_ = computed_after(x, lambda_)
            bases = reader.read(stored, shape, x.dtype, after=x)
            update = Update(shape, lambda_, gamma, *bases, scale)
            kernel = _base_kernel(frozen, held, x, after=x)
            kernel = adapted_kernel(update, kernel, layout, after=x)
            return layout.apply(frozen.seen(x), kernel)

        def backward(tensors: tuple[Array, ...], gradient: Array) -> tuple[Any, ...]:
            x, lambda_, gamma, *others = tensors
            held, stored = others[:count], others[count:]
            lambda_ = computed_after(gradient, lambda_)
            gamma = computed_after(gradient, gamma)
            bases = reader.read(stored, shape, x.dtype, after=gradient)
            update = Update(shape, lambda_, gamma, *bases, scale)
            kernel = _base_kernel(frozen, held, x, after=gradient)
            kernel = None if kernel is None else layout.to_matrix(kernel)
            kernel = adapted_matrix(update, kernel, after=gradient)
            gradient = layout.output_rows(gradient, len(x.shape))
            x_gradient = layout.from_rows(gradient @ transpose(kernel), x)
            del kernel  # torch frees what has no name
            rows = layout.rows(frozen.seen(x))
            return x_gradient, *gradients_of_product(update, rows, gradient)

        product = self._with_gradient(forward, backward, 3, count)
        return product(inputs, lambda_, gamma, *held, *self.bank.stored())

    def factored(self, inputs: Array, lambda_: Array, gamma: Array) -> Array:
        """Return `inputs · update`, without forming the update."""
        layout, shape, scale = self.layout, self.shape, self.factor
        frozen, reader = self.kernel, self.bank.reader

        def scaled(lambda_: Array, gamma: Array, basis_a: Array, dtype: str) -> Array:
            basis_a = cast(basis_a, "float32")
            return cast(scaled_basis_a(scale * lambda_, gamma, basis_a), dtype)

        def forward(x: Array, lambda_: Array, gamma: Array, *stored: Array) -> Array:
            lambda_ = computed_after(x, lambda_)
            basis_a, basis_b = reader.read(stored, shape, x.dtype, after=x)
            stacked = scaled(lambda_, gamma, basis_a, x.dtype)
            columns = transpose(layout.rows(frozen.seen(x)))
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
            basis_a, basis_b = reader.read(stored, shape, x.dtype, after=gradient)
            stacked = scaled(lambda_, gamma, basis_a, x.dtype)
            rows = layout.rows(frozen.seen(x))
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
            return x_gradient, *adapter

        product = self._with_gradient(forward, backward, 3, 0)
        return product(inputs, lambda_, gamma, *self.bank.stored())

    def _with_gradient(
        self,
        forward: Callable[..., Array],
        backward: Callable[..., tuple[Array, ...]],
        trained: int,
        held: int,
    ) -> Callable[..., Array]:
        """Return `forward` with its gradient, the same for all layers of a kind.

        Args:
            forward: As in `with_gradient`; depends on the attributes only.
            backward: Likewise.
            trained: As in `with_gradient`.
            held: How many tensors hold the kernel.
        """
        stored = self.layout, self.kernel, self.shape, self.factor, held
        return with_gradient_of_kind(
            self.bank,
            (forward.__qualname__, *stored),
            forward,
            backward,
            trained=trained,
        )


def _base_kernel(
    frozen: FrozenKernel, held: Sequence[Array], inputs: Array, after: Array
) -> Array | None:
    """Return the frozen kernel for a product with `inputs`, `None` without one."""
    if not held:
        return None
    kernel, *others = held
    if _dtype(kernel) != _dtype(inputs):
        kernel = computed_after(after, kernel)
    return frozen.dense((kernel, *others), _dtype(inputs))


def _dtype(tensor: Array) -> str:
    return keras.backend.standardize_dtype(tensor.dtype)


def _float_dtype(kernel: Array) -> str:
    """Return the dtype of a kernel, float32 if it is quantized."""
    dtype = _dtype(kernel)
    return dtype if keras.backend.is_float_dtype(dtype) else "float32"
