"""The basis B as an operator: the products that a layer takes with it.

A dense B is multiplied as a matrix, a very sparse one perhaps as in `sparse.py`.
The Kronecker basis is the leading part of `left ⊗ right` and is never formed: with the
block size p, a product with a matrix of k columns takes `2·n·r·k·(p + l/p)` operations
instead of `2·l·n·r·k`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import keras
from keras import ops

from keras_randlora.tools import reshape, transpose, with_rows

Array = Any
BLOCK = 64  # side of the right Kronecker factor: near √l for common kernels
# So many XLA multiplies as they are; more are transposed first.
_FEW_ROWS = 512


class Operator(Protocol):
    """Interface of B `(l, n * r)`.

    Attributes:
        in_strips: Whether a product with few columns takes no longer for each.
    """

    in_strips: bool

    @property
    def dtype(self) -> Any:
        """The dtype of the products."""

    def dense(self) -> Array:
        """Return B of shape `(l, n * r)`."""

    def expand(self, values: Array) -> Array:
        """Return `B · values`, `(l, k)`, for `values` of shape `(n * r, k)`."""

    def expand_transposed(self, values: Array) -> Array:
        """Return `(B · values)ᵀ`, `(k, l)`, for `values` of shape `(n * r, k)`."""

    def project(self, values: Array) -> Array:
        """Return `Bᵀ · values`, `(n * r, k)`, for `values` of shape `(l, k)`."""

    def project_transposed(self, values: Array) -> Array:
        """Return `Bᵀ · valuesᵀ`, `(n * r, k)`, for `values` of shape `(k, l)`."""


@dataclass(frozen=True)
class DenseOperator:
    """B as a matrix.

    Attributes:
        matrix: B of shape `(l, n * r)`.
    """

    matrix: Array
    in_strips = False

    @property
    def dtype(self) -> Any:
        """The dtype of the products."""
        return self.matrix.dtype

    def dense(self) -> Array:
        """Return B of shape `(l, n * r)`."""
        return self.matrix

    def expand(self, values: Array) -> Array:
        """Return `B · values`."""
        return self.matrix @ values

    def expand_transposed(self, values: Array) -> Array:
        """Return `(B · values)ᵀ`."""
        return transpose(values) @ transpose(self.matrix)

    def project(self, values: Array) -> Array:
        """Return `Bᵀ · values`."""
        return transpose(self.matrix) @ values

    def project_transposed(self, values: Array) -> Array:
        """Return `Bᵀ · valuesᵀ`."""
        return transpose(self.matrix) @ transpose(values)


@dataclass(frozen=True)
class KroneckerOperator:
    """B as the leading part of `left ⊗ right`; the methods are `Operator`'s.

    Attributes:
        left: Left factor of shape `(ceil(l / p), ceil(n * r / p))`.
        right: Right factor of shape `(p, p)`.
        rows: Rows `l` of B.
        columns: Columns `n * r` of B.
    """

    left: Array
    right: Array
    rows: int
    columns: int
    in_strips = True

    @property
    def dtype(self) -> Any:
        """The dtype of the products."""
        return self.left.dtype

    def dense(self) -> Array:
        """Return B of shape `(l, n * r)`."""
        whole = self.left[:, None, :, None] * self.right[None, :, None, :]
        shape = self.left.shape[0] * BLOCK, self.left.shape[1] * BLOCK
        return reshape(whole, shape)[: self.rows, : self.columns]

    def expand(self, values: Array) -> Array:
        """Return `B · values`."""
        values = _in_blocks(values, self.left.shape[1])
        values = _for_each(self.right, values) @ values
        return _product_of_blocks(self.left, values)[: self.rows]

    def expand_transposed(self, values: Array) -> Array:
        """Return `(B · values)ᵀ`.

        torch would read a transposed result entry by entry: there its rows are products
        of their own.
        """
        if keras.backend.backend() != "torch":
            return transpose(self.expand(values))
        count = self.left.shape[1]
        values = reshape(_filled_up(values, count), (count * BLOCK, -1))
        rows = reshape(transpose(values), (-1, BLOCK)) @ transpose(self.right)
        rows = self.left @ reshape(rows, (-1, count, BLOCK))
        return reshape(rows, (rows.shape[0], -1))[:, : self.rows]

    def project(self, values: Array) -> Array:
        """Return `Bᵀ · values`."""
        values = _in_blocks(values, self.left.shape[0])
        values = _product_of_blocks(transpose(self.left), values)
        values = _in_blocks(values, self.left.shape[1])
        values = _for_each(transpose(self.right), values) @ values
        rows = self.left.shape[1] * BLOCK
        return reshape(values, (rows, -1))[: self.columns]

    def project_transposed(self, values: Array) -> Array:
        """Return `Bᵀ · valuesᵀ`, on torch row by row, see `expand_transposed`."""
        count, of_values = reversed(self.left.shape)
        compiled = keras.backend.backend() != "torch"
        if of_values * BLOCK != self.rows or (compiled and values.shape[0] > _FEW_ROWS):
            return self.project(transpose(values))
        values = reshape(values, (-1, of_values, BLOCK))
        if compiled:
            rows = ops.einsum("kc,wkp->cwp", self.left, values)
            rows = ops.einsum("cwp,pq->cqw", rows, self.right)
            return reshape(rows, (count * BLOCK, -1))[: self.columns]
        rows = transpose(transpose(self.left) @ values, (1, 2, 0))
        return reshape(transpose(self.right) @ rows, (count * BLOCK, -1))[
            : self.columns
        ]


def blocks(size: int) -> int:
    """Return how many blocks of `BLOCK` rows or columns hold `size` of them."""
    return -(-size // BLOCK)


def _in_blocks(values: Array, count: int) -> Array:
    """Return the rows in `count` blocks, the last filled up with zeros."""
    return reshape(_filled_up(values, count), (count, BLOCK, -1))


def _filled_up(values: Array, count: int) -> Array:
    """Return `count` blocks of rows, the last ones zeros."""
    missing = count * BLOCK - values.shape[0]
    return with_rows(values, missing) if missing else values


def _for_each(matrix: Array, values: Array) -> Array:
    """Repeat a matrix for each block: else JAX and TensorFlow transpose the blocks."""
    return ops.broadcast_to(matrix, (values.shape[0], *matrix.shape))


def _product_of_blocks(matrix: Array, values: Array) -> Array:
    """Return the rows of `matrix` times the blocks, `(rows * p, k)`."""
    product = matrix @ reshape(values, (values.shape[0], -1))
    return reshape(product, (matrix.shape[0] * BLOCK, -1))
