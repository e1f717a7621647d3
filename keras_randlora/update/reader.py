"""Reader of a layer's bases, without the bank.

A gradient's functions live as long as TensorFlow remembers a graph, possibly for ever.
They hold a reader, that holds no basis on TensorFlow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_randlora.bases import (
    BasisSpec,
    Operator,
    PairSize,
    SparseOperator,
    seed_tensor,
    sparse_pays,
)
from keras_randlora.tools import cast, keras_internals
from keras_randlora.update.formula import UpdateShape
from keras_randlora.update.gradient import computed_after

Array = Any


@dataclass
class Analysed:
    """The leading parts of a sparse B of torch, analysed once for each size.

    Attributes:
        version: Of the entries that were analysed.
        known: The operators by rows and columns.
    """

    version: int = 0
    known: dict[tuple[int, int], SparseOperator] = field(default_factory=dict)

    def operator(self, entries: Array, size: PairSize) -> SparseOperator:
        """Return the leading part of B.

        What was analysed of entries that have been assigned anew since is dropped.
        """
        version = keras_internals.version_of(entries)
        if self.version != version:
            self.version, self.known = version, {}
        key = size.larger, size.columns
        if key not in self.known:
            part = entries[: size.larger, : size.columns]
            self.known[key] = SparseOperator.of_entries(part)
        return self.known[key]


@dataclass(frozen=True)
class BasisReader:
    """Reads the bases of one layer from what a bank stores.

    Attributes:
        rank: Rows `r` of `basis_a`.
        spec: What the bases are drawn from.
        held_dtype: The dtype of stored bases, to which regenerated ones are rounded.
        analysed: What is known of a sparse B.
    """

    rank: int
    spec: BasisSpec
    held_dtype: str
    analysed: Analysed

    def read(
        self,
        stored: Sequence[Array],
        shape: UpdateShape,
        dtype: Any,
        after: Array | None = None,
    ) -> tuple[Array, Operator]:
        """Return `basis_a` and `basis_b` for one layer, see `BasisBank.read`."""
        dtype = keras.backend.standardize_dtype(dtype)
        size = PairSize(self.rank, shape.smaller, shape.larger, shape.columns)
        if dtype == "float32" and self.is_sparse(stored):
            basis_a = cast(stored[0][:, : shape.smaller], dtype)
            return basis_a, self.analysed.operator(stored[1], size)
        kind = self.spec.kind
        held = stored or self._draw_ops(size, after)
        basis_a, *of_b = (
            _converted(basis[:rows, :columns], dtype, after)
            for basis, (rows, columns) in zip(
                held, kind.shapes(size).values(), strict=True
            )
        )
        return basis_a, kind.operator(of_b, size)

    def is_sparse(self, stored: Sequence[Array]) -> bool:
        """Return whether B is multiplied by its entries where it is float32."""
        return bool(stored) and sparse_pays(self.spec, stored[1])

    def _draw_ops(self, size: PairSize, after: Array | None) -> list[Array]:
        """Draw what a bank would store for one layer."""
        seed = seed_tensor(self.spec)
        if after is not None:
            seed = computed_after(after, seed)
        drawn = self.spec.kind.draw_ops(self.spec, size, seed)
        return [cast(basis, self.held_dtype) for basis in drawn]


def _converted(basis: Array, dtype: Any, after: Array | None) -> Array:
    if keras.backend.standardize_dtype(basis.dtype) == dtype:
        return basis
    if after is not None:
        basis = computed_after(after, basis)
    return cast(basis, dtype)
