"""Products with a sparse ternary basis on a CPU under torch, as sums of rows.

From about 90 % zeros they are faster there than the dense product
(`python -m benchmarks.sparse_products`). JAX and TensorFlow have no sparse product that
XLA compiles well on a CPU, and GPUs are faster with dense products. The basis
`"kronecker"` is as cheap everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from keras_randlora.bases.spec import BasisSpec
from keras_randlora.tools import keras_internals

Array = Any
MAX_DENSITY = 0.1
# Adding a row takes as long as five of a dense product's operations on it.
COST_OF_AN_ENTRY = 5


@dataclass(frozen=True)
class SignedRows:
    """The rows of a matrix that each row of a product adds and subtracts.

    Attributes:
        plus: Indices of the rows to add, and the start for each row of the product.
        minus: The same for the rows to subtract.
    """

    plus: tuple[Array, Array]
    minus: tuple[Array, Array]

    @classmethod
    def of_entries(cls, entries: Array) -> SignedRows:
        """Return the product with a matrix of -1, 0 and 1, a dense torch tensor."""
        return cls(_ones(entries == 1), _ones(entries == -1))

    def times(self, values: Array) -> Array:
        """Return the product with `values`, `(rows of values, k)`."""
        from torch.nn.functional import embedding_bag

        plus, minus = (
            embedding_bag(rows, values.contiguous(), starts, mode="sum")
            for rows, starts in (self.plus, self.minus)
        )
        return plus.sub_(minus) if not plus.requires_grad else plus - minus


@dataclass(frozen=True)
class SparseOperator:
    """B as its nonzero entries; an `operators.Operator`.

    Attributes:
        entries: B of shape `(l, n * r)`, int8.
        by_row: Products with B.
        by_column: Products with its transpose.
    """

    entries: Array
    by_row: SignedRows
    by_column: SignedRows
    dtype = "float32"
    in_strips = False

    @classmethod
    def of_entries(cls, entries: Array) -> SparseOperator:
        """Return B from its dense entries, for use with and without gradients."""
        import torch

        with torch.inference_mode(False):
            by_row = SignedRows.of_entries(entries)
            return cls(entries, by_row, SignedRows.of_entries(entries.T))

    def dense(self) -> Array:
        """Return B of shape `(l, n * r)`."""
        return self.entries.float()

    def expand(self, values: Array) -> Array:
        """Return `B · values`."""
        return self.by_row.times(values)

    def expand_transposed(self, values: Array) -> Array:
        """Return `(B · values)ᵀ`."""
        return self.by_row.times(values).T

    def project(self, values: Array) -> Array:
        """Return `Bᵀ · values`."""
        return self.by_column.times(values)

    def project_transposed(self, values: Array) -> Array:
        """Return `Bᵀ · valuesᵀ`."""
        return self.by_column.times(values.T)


def density(spec: BasisSpec) -> float:
    """Return the expected share of nonzero entries."""
    return 1.0 if spec.sparsity is None else 2.0 / spec.sparsity


def sparse_pays(spec: BasisSpec, entries: Array) -> bool:
    """Return whether sparse products with such a basis are faster on its device."""
    if keras.backend.backend() != "torch" or density(spec) > MAX_DENSITY:
        return False
    import torch

    traced = torch.compiler.is_compiling() or keras_internals.is_transformed()
    return entries.device.type == "cpu" and not traced


def sparse_operations(rows: int, columns: int, spec: BasisSpec) -> int:
    """Return the operations of a dense product of equal time, for one column."""
    return round(2 * rows * columns * density(spec) * COST_OF_AN_ENTRY)


def _ones(mask: Array) -> tuple[Array, Array]:
    """Return the columns of all true entries, and the start of each row."""
    import torch

    counts = mask.sum(dim=1)
    starts = torch.cumsum(counts, 0) - counts
    return mask.nonzero()[:, 1].int(), starts.int()
