"""Kernel layouts: a kernel as a matrix or a batch of matrices, and back.

An equation is analysed once into a `KernelLayout`; afterwards only transposes,
reshapes and einsums are run.
"""

from __future__ import annotations

import functools
import math
import string
from dataclasses import dataclass
from typing import Any

from keras import ops

from keras_randlora.tools import is_traced, reshape, transpose

Array = Any
DENSE_EQUATION = "...a,ab->...b"
AXIS_ROLES = ("batch", "in", "out")


@dataclass(frozen=True)
class KernelLayout:
    """How a kernel is read as a matrix `(inputs, outputs)`, or as a batch of them.

    Attributes:
        equation: The layer's einsum equation, perhaps with an ellipsis; `None` for a
            kernel that is read by code of its own, never multiplied by ours.
        kernel_shape: Shape of the kernel as the layer holds it.
        input_axes: Kernel axes that are contracted with the input.
        output_axes: Kernel axes that appear in the output.
        batch_axes: Batch axes of the kernel: experts, heads.
    """

    equation: str | None
    kernel_shape: tuple[int, ...]
    input_axes: tuple[int, ...]
    output_axes: tuple[int, ...]
    batch_axes: tuple[int, ...] = ()

    @property
    def inputs(self) -> int:
        """Rows of the matrix."""
        return self._size(self.input_axes)

    @property
    def outputs(self) -> int:
        """Columns of the matrix."""
        return self._size(self.output_axes)

    @property
    def batch(self) -> int | None:
        """How many matrices the kernel holds, `None` for a single one."""
        return self._size(self.batch_axes) if self.batch_axes else None

    def to_matrix(self, kernel: Array) -> Array:
        """Return the kernel as `(inputs, outputs)`, or `(batch, inputs, outputs)`."""
        batch = () if self.batch is None else (self.batch,)
        moved = _transpose(kernel, self._order)
        return reshape(moved, (*batch, self.inputs, self.outputs))

    def to_kernel(self, matrix: Array) -> Array:
        """Return what `to_matrix` returned in the shape of the kernel."""
        split = reshape(matrix, [self.kernel_shape[axis] for axis in self._order])
        return _transpose(split, _inverse(self._order))

    @property
    def is_matmul(self) -> bool:
        """Whether the layer's product is a matmul, which takes sparse matrices."""
        return self.equation == DENSE_EQUATION

    def apply(self, inputs: Array, kernel: Array) -> Array:
        """Return the layer's product, by the very operation that Keras runs."""
        if self.is_matmul:
            return ops.matmul(inputs, kernel)
        return ops.einsum(self.equation, inputs, kernel)

    def rows(self, inputs: Array) -> Array:
        """Return the input as `(tokens, inputs)`."""
        axes = self._axes(len(inputs.shape))
        moved = _transpose(inputs, axes.input_rows)
        return reshape(moved, (-1, self.inputs))

    def output_rows(self, outputs: Array, input_ndim: int) -> Array:
        """Return an array shaped like the output as `(tokens, outputs)`."""
        axes = self._axes(input_ndim)
        return reshape(_transpose(outputs, axes.output_rows), (-1, self.outputs))

    def from_output_rows(self, rows: Array, inputs: Array) -> Array:
        """Return `(tokens, outputs)` in the shape of the layer's output."""
        axes = self._axes(len(inputs.shape))
        sizes = ops.shape(inputs)
        tokens = [sizes[axis] for axis in axes.input_rows[: axes.token_count]]
        features = [self.kernel_shape[axis] for axis in self.output_axes]
        split = reshape(rows, tokens + features)
        return _transpose(split, _inverse(axes.output_rows))

    def from_rows(self, rows: Array, inputs: Array) -> Array:
        """Return `(tokens, inputs)` in the shape of `inputs`."""
        axes = self._axes(len(inputs.shape))
        sizes = ops.shape(inputs)
        split = reshape(rows, [sizes[axis] for axis in axes.input_rows])
        return _transpose(split, _inverse(axes.input_rows))

    def tokens(self, input_shape: tuple[Any, ...]) -> int | None:
        """Return the number of rows the input holds, `None` where unknown.

        An exporter's symbolic size is unknown: asking whether it is below a number is
        an error on JAX, and on torch an answer that the exported program must keep.
        """
        axes = self._axes(len(input_shape))
        sizes = [input_shape[axis] for axis in axes.input_rows[: axes.token_count]]
        return math.prod(sizes) if all(type(s) is int for s in sizes) else None

    @property
    def _order(self) -> tuple[int, ...]:
        return self.batch_axes + self.input_axes + self.output_axes

    def _size(self, axes: tuple[int, ...]) -> int:
        return math.prod([self.kernel_shape[axis] for axis in axes])

    def _axes(self, input_ndim: int) -> _Axes:
        if self.equation is None:
            raise ValueError("This kernel is only read; its layer multiplies by it.")
        key = self.equation, input_ndim
        axes = _RESOLVED.get(key)
        if axes is None:
            axes = _resolve_axes(*key)
            # A compiler of torch follows neither this nor `functools.cache`.
            if not is_traced():
                _RESOLVED[key] = axes
        return axes


@dataclass(frozen=True)
class _Axes:
    """Axis orders that bring input and output to `(tokens…, features…)`."""

    input_rows: tuple[int, ...]
    output_rows: tuple[int, ...]
    token_count: int


@functools.cache
def einsum_layout(equation: str, kernel_shape: tuple[int, ...]) -> KernelLayout:
    """Analyse an `EinsumDense` equation.

    Args:
        equation: For instance `"btd,ndh->btnh"`, `"...x,xy->...y"`, or
            `"bth,hxy->bthy"` with a matrix for each head `h`.
        kernel_shape: Shape of the layer's kernel.

    Raises:
        ValueError: The kernel does not split into axes contracted with the input, axes
            of the output, and axes of both that number matrices (a summed axis).
    """
    inputs, kernel, outputs = _split(equation)
    contracted = set(kernel) & set(inputs) - set(outputs)
    lonely = sorted(set(kernel) - set(inputs) - set(outputs))
    summed = sorted(set(inputs) - set(kernel) - set(outputs) - {"."})
    repeated = any(
        len(set(labels)) != len(labels) for labels in (inputs.replace(".", ""), kernel)
    )
    if lonely or summed or repeated or not contracted:
        raise ValueError(
            f"The equation '{equation}' is not a product of the input's axes with "
            "a kernel that splits into input axes and output axes. Leave this "
            "layer out of `targets`."
        )

    def axes(in_input: bool, in_output: bool) -> tuple[int, ...]:
        found = (in_input, in_output)
        return tuple(
            i for i, a in enumerate(kernel) if (a in inputs, a in outputs) == found
        )

    return KernelLayout(
        equation=equation,
        kernel_shape=tuple(kernel_shape),
        input_axes=axes(True, False),
        output_axes=axes(False, True),
        batch_axes=axes(True, True),
    )


def read_layout(roles: str, kernel_shape: tuple[int, ...]) -> KernelLayout:
    """Return the layout of a kernel that is read, from the roles of its axes.

    Args:
        roles: A word for each axis of the kernel: `"in"`, `"out"` or `"batch"`, such
            as `"batch in out"` for a matrix `(in, out)` for each expert.
        kernel_shape: Shape of the kernel.

    Raises:
        ValueError: There is another number of axes, an unknown word, no `"in"` or no
            `"out"`.
    """
    words = roles.split()
    shown = f"Received: axes={roles!r} for a weight of shape {tuple(kernel_shape)}."
    if unknown := [word for word in words if word not in AXIS_ROLES]:
        raise ValueError(
            f"Axes are described by {list(AXIS_ROLES)}, not by '{unknown[0]}'. {shown}"
        )
    if len(words) != len(kernel_shape):
        raise ValueError(f"Give one word for each axis. {shown}")
    if not {"in", "out"} <= set(words):
        raise ValueError(
            "A weight that is multiplied has an axis 'in' at least, which is summed "
            f"over, and an axis 'out'. {shown}"
        )

    def axes(role: str) -> tuple[int, ...]:
        return tuple(i for i, word in enumerate(words) if word == role)

    return KernelLayout(
        equation=None,
        kernel_shape=tuple(kernel_shape),
        input_axes=axes("in"),
        output_axes=axes("out"),
        batch_axes=axes("batch"),
    )


def dense_layout(kernel_shape: tuple[int, ...]) -> KernelLayout:
    """Return the layout of a `Dense` kernel `(inputs, outputs)`."""
    return einsum_layout(DENSE_EQUATION, tuple(kernel_shape))


_RESOLVED: dict[tuple[str, int], _Axes] = {}


def _resolve_axes(equation: str, input_ndim: int) -> _Axes:
    inputs, kernel, outputs = _split(equation)
    free = [c for c in string.ascii_letters if c not in equation]
    ellipsis = "".join(free[: input_ndim - len(inputs.replace("...", ""))])
    inputs = inputs.replace("...", ellipsis)
    outputs = outputs.replace("...", ellipsis)
    tokens = [axis for axis in inputs if axis not in kernel]
    contracted = [axis for axis in kernel if axis in inputs]
    produced = [axis for axis in kernel if axis in outputs]
    return _Axes(
        input_rows=tuple(inputs.index(axis) for axis in tokens + contracted),
        output_rows=tuple(outputs.index(axis) for axis in tokens + produced),
        token_count=len(tokens),
    )


def _split(equation: str) -> tuple[str, str, str]:
    """Return the input, kernel and output labels of an equation."""
    left, outputs = equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    return inputs, kernel, outputs


def _transpose(array: Array, order: tuple[int, ...]) -> Array:
    return array if order == tuple(range(len(order))) else transpose(array, order)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))
