"""The adapted kernel, and the gradient of λ and γ, strip by strip.

A strip is a part of the smaller side of a matrix, or one matrix of a batch. A product
with the factors of a Kronecker basis costs as much in strips as at once, what passes
between them stays in a processor's cache, and nothing of the kernel's size is held
beside the adapted kernel. Small kernels, other bases, GPUs, TensorFlow, and kernels
that a mesh of devices shards are one strip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from keras_randlora.bases import Operator
from keras_randlora.tools import cast, is_traced, loops, transpose
from keras_randlora.update.formula import (
    AdapterGradients,
    UpdateShape,
    adapter_gradients,
    kernel_update,
    projected_gradient,
)
from keras_randlora.update.gradient import computed_after
from keras_randlora.update.layouts import KernelLayout

Array = Any
# Entries of a strip: a few passes over what lies in the cache, and a product of
# matrices that are not too narrow (`python -m benchmarks.single_layer`).
STRIP_OF_UPDATE = 2**18
STRIP_OF_GRADIENT = 2**20
FEWEST_ENTRIES = 2**20
FEWEST_COLUMNS = 32
# XLA runs the body of a loop on fewer threads than a large product: strips pay for
# kernels whose smaller side is at least this.
SMALLEST_COMPILED_SIDE = 2048


@dataclass(frozen=True)
class Update:
    """The update of one kernel, as tensors.

    Attributes:
        shape: Its sizes.
        lambda_: λ, float32.
        gamma: γ, float32.
        basis_a: A of shape `(r, s)`.
        basis_b: B as an operator.
        scale: The factor of the update.
    """

    shape: UpdateShape
    lambda_: Array
    gamma: Array
    basis_a: Array
    basis_b: Operator
    scale: float

    def matrix(self) -> Array:
        """Return the update, `(inputs, outputs)`, or of a batch."""
        factors = self.lambda_, self.gamma, self.basis_a, self.basis_b
        return kernel_update(self.shape, *factors, self.scale)

    def gradients(self, gradient: Array) -> AdapterGradients:
        """Return the gradients of λ and γ from that of `matrix()`."""
        return self._gradients(projected_gradient(self.shape, gradient, self.basis_b))

    def gradients_of_product(self, larger: Array, smaller: Array) -> AdapterGradients:
        """Return the gradients of λ and γ where that of M is `largerᵀ · smaller`.

        Args:
            larger: Rows of the tokens, `(tokens, l)`.
            smaller: Rows of the tokens, `(tokens, s)`.
        """
        if self.basis_b.in_strips:
            gradient = transpose(smaller) @ larger
            return self._gradients(self.basis_b.project_transposed(gradient))
        return self._gradients(self.basis_b.project(transpose(larger) @ smaller))

    def columns(self, start: Any, width: int) -> Update:
        """Return the update of a strip of the smaller side."""
        gamma, basis_a = (
            loops.part(matrix, 1, start, width) for matrix in (self.gamma, self.basis_a)
        )
        return replace(self, gamma=gamma, basis_a=basis_a)

    def of_batch(self, number: Any) -> Update:
        """Return the update of one matrix of a batch."""
        lambda_, gamma = (
            loops.part(factor, 0, number if factor.shape[0] > 1 else 0, 1)[0]
            for factor in (self.lambda_, self.gamma)
        )
        shape = replace(self.shape, batch=None)
        return replace(self, shape=shape, lambda_=lambda_, gamma=gamma)

    def _gradients(self, stacked: Array) -> AdapterGradients:
        factors = self.lambda_, self.gamma, self.basis_a
        return adapter_gradients(stacked, *factors, self.scale)


def adapted_kernel(
    update: Update,
    kernel: Array | None,
    layout: KernelLayout,
    after: Array | None = None,
) -> Array:
    """Return `kernel + update` in the shape of the kernel, see `adapted_matrix`.

    Args:
        update: The update.
        kernel: The frozen kernel, `None` for none.
        layout: How the kernel is read as a matrix.
        after: What the strips wait for, see `computed_after`.
    """
    if not _pays(update):
        return _sum(kernel, layout.to_kernel(update.matrix()))
    matrix = None if kernel is None else layout.to_matrix(kernel)
    return layout.to_kernel(adapted_matrix(update, matrix, after))


def adapted_matrix(
    update: Update, kernel: Array | None, after: Array | None = None
) -> Array:
    """Return `kernel + update`, taken in the wider dtype of the two.

    Args:
        update: The update.
        kernel: The frozen kernel as a matrix `(inputs, outputs)` or a batch of them,
            `None` for none.
        after: What the strips wait for, see `computed_after`.

    Returns:
        The adapted kernel, of the matrix's shape, in the dtype of B.
    """
    shape = update.shape
    if not _pays(update):
        return _sum(kernel, update.matrix())
    if shape.batch is not None:
        width, count, axis = 1, shape.batch, 0
    else:
        width = width_of(shape, STRIP_OF_UPDATE)
        count, axis = shape.smaller // width, 0 if shape.transposed else 1
    # A compiled loop begins with a copy of the kernel and adds to it.
    dtype = keras.backend.standardize_dtype(update.basis_b.dtype)
    compiled = keras.backend.backend() != "torch"
    in_place = compiled and kernel is not None and _dtype(kernel) == dtype

    def body(number: Any, whole: Array) -> Array:
        start = number * width
        if shape.batch is not None:
            strip = update.of_batch(number).matrix()[None]
        else:
            strip = update.columns(start, width).matrix()
        former = whole if in_place else kernel
        if former is not None:
            strip = _sum(loops.part(former, axis, start, width), strip)
        return loops.with_part(whole, axis, start, strip)

    initial = kernel
    if not in_place:
        sides = shape.inputs, shape.outputs
        whole = sides if shape.batch is None else (shape.batch, *sides)
        sources = [update.lambda_, update.gamma, *([] if kernel is None else [kernel])]
        initial = loops.zeros(whole, dtype, sources)
    if after is not None:
        initial = computed_after(after, initial)
    return loops.run(count, body, initial)


def gradients_of_matrix(update: Update, gradient: Array) -> AdapterGradients:
    """Return the gradients of λ and γ from the gradient of the adapted kernel.

    Args:
        update: The update.
        gradient: `(inputs, outputs)`, or of a batch.
    """
    shape = update.shape
    if not _pays(update):
        return update.gradients(gradient)
    if shape.batch is not None:
        return _of_batch(update, gradient)
    axis = 0 if shape.transposed else 1

    def of_strip(strip: Update, start: Any, width: int) -> AdapterGradients:
        return strip.gradients(loops.part(gradient, axis, start, width))

    return _summed(update, of_strip, [gradient])


def gradients_of_product(
    update: Update, inputs: Array, gradient: Array
) -> AdapterGradients:
    """Return the gradients of λ and γ from those of a product with the kernel.

    The gradient of the kernel, `inputsᵀ · gradient`, is formed in strips too.

    Args:
        update: The update of a single matrix.
        inputs: `(tokens, inputs)`.
        gradient: Gradient of the product, `(tokens, outputs)`.
    """
    larger, smaller = inputs, gradient
    if update.shape.transposed:
        larger, smaller = gradient, inputs
    if not _pays(update):
        return update.gradients_of_product(larger, smaller)

    def of_strip(strip: Update, start: Any, width: int) -> AdapterGradients:
        columns = loops.part(smaller, 1, start, width)
        return strip.gradients_of_product(larger, columns)

    return _summed(update, of_strip, [inputs, gradient])


def _summed(
    update: Update,
    of_strip: Callable[[Update, Any, int], AdapterGradients],
    sources: Sequence[Array],
) -> AdapterGradients:
    """Return the sum of λ's gradients and all columns of γ's."""
    width = width_of(update.shape, STRIP_OF_GRADIENT)

    def body(number: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        start = number * width
        found = of_strip(update.columns(start, width), start, width)
        return sums[0] + found.lambda_, loops.with_part(sums[1], 1, start, found.gamma)

    count = update.shape.smaller // width
    return AdapterGradients(*loops.run(count, body, _zeros(update, sources)))


def _of_batch(update: Update, gradient: Array) -> AdapterGradients:
    """Return the gradients of λ and γ, one matrix of the batch after the other."""
    shared = [factor.shape[0] == 1 for factor in (update.lambda_, update.gamma)]

    def body(number: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix = loops.part(gradient, 0, number, 1)[0]
        found = update.of_batch(number).gradients(matrix)
        return tuple(
            whole + one[None]
            if is_shared
            else loops.with_part(whole, 0, number, one[None])
            for whole, one, is_shared in zip(sums, found, shared, strict=True)
        )

    count = update.shape.batch or 1
    return AdapterGradients(*loops.run(count, body, _zeros(update, [gradient])))


def _zeros(update: Update, sources: Sequence[Array]) -> tuple[Array, Array]:
    sources = [update.lambda_, update.gamma, *sources]
    of_lambda, of_gamma = (
        loops.zeros(factor.shape, "float32", sources)
        for factor in (update.lambda_, update.gamma)
    )
    return of_lambda, of_gamma


def _pays(update: Update) -> bool:
    """Return whether strips are faster than all at once."""
    shape = update.shape
    if not update.basis_b.in_strips or shape.entries < FEWEST_ENTRIES:
        return False
    if keras.backend.backend() != "torch":
        # Outside XLA TensorFlow's loop copies the whole for each strip, and JAX
        # compiles each loop anew.
        compiled = keras.backend.backend() == "jax" and is_traced()
        if not compiled or shape.smaller < SMALLEST_COMPILED_SIDE:
            return False
    sharded = isinstance(
        keras.distribution.distribution(), keras.distribution.ModelParallel
    )
    return loops.on_cpu(update.lambda_) and not sharded


def width_of(shape: UpdateShape, entries: int) -> int:
    """Return the columns of equal strips of at most so many entries."""
    most = max(entries // max(shape.larger, shape.columns), FEWEST_COLUMNS)
    divisors = (w for w in range(most, FEWEST_COLUMNS - 1, -1) if not shape.smaller % w)
    return next(divisors, shape.smaller)


def _sum(kernel: Array | None, update: Array) -> Array:
    """Return their sum in the update's dtype, taken in the wider of the two."""
    if kernel is None:
        return update
    return cast(kernel + cast(update, _dtype(kernel)), _dtype(update))


def _dtype(tensor: Array) -> str:
    return keras.backend.standardize_dtype(tensor.dtype)
