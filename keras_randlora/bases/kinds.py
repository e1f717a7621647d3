"""Kinds of bases: drawing, stored arrays and products of a pair.

| kind | A `(r, s)` | B `(l, n * r)` | stored of B |
|---|---|---|---|
| `EntrywiseBasis` | entries of a distribution | likewise | B |
| `KroneckerBasis` | U(-√3, √3) | the leading part of `left ⊗ right` | both factors |

The left factor is U(-√3, √3), the right one a Hadamard matrix of 64 rows with random
signs of its rows and columns, so each entry of B is U(-√3, √3) as well. All leading
blocks of `right` are regular, and those of `left` with probability 1.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from keras import ops

from keras_randlora.bases.distributions import UNIFORM, Distribution
from keras_randlora.bases.draws import draw, draw_ops, seed_tensor
from keras_randlora.bases.operators import (
    BLOCK,
    DenseOperator,
    KroneckerOperator,
    Operator,
    blocks,
)
from keras_randlora.bases.threefry import words, words_ops

if TYPE_CHECKING:
    from keras_randlora.bases.spec import BasisSpec

_BASIS_A, _BASIS_B, _SIGNS = 0, 1, 2


class PairSize(NamedTuple):
    """Sizes of a pair of bases.

    Attributes:
        rank: Rows `r` of A.
        smaller: Columns `s` of A.
        larger: Rows `l` of B.
        columns: Columns `n * r` of B.
    """

    rank: int
    smaller: int
    larger: int
    columns: int


class BasisKind(Protocol):
    """Interface of a kind of bases."""

    @property
    def distribution(self) -> Distribution:
        """The distribution of the entries, with dtype and default sparsity."""

    def shapes(self, size: PairSize) -> dict[str, tuple[int, int]]:
        """Return the shapes of the stored arrays; the first is A, `"basis_a"`."""

    def draw(self, spec: BasisSpec, size: PairSize) -> dict[str, np.ndarray]:
        """Return the stored arrays, as NumPy arrays."""

    def draw_ops(self, spec: BasisSpec, size: PairSize, seed: Any = None) -> list[Any]:
        """Return the stored arrays, drawn with `keras.ops`; see `draws.draw_ops`."""

    def whole_b(self, held: Sequence[np.ndarray], size: PairSize) -> np.ndarray:
        """Return B `(l, n * r)` from the arrays of `draw` without A."""

    def operator(self, held: Sequence[Any], size: PairSize) -> Operator:
        """Return B as an operator, from its stored arrays."""

    def operations(self, larger: int, columns: int) -> int:
        """Count the operations of a product of B with one column."""


@dataclass(frozen=True)
class EntrywiseBasis:
    """A and B are matrices of independent entries.

    Attributes:
        distribution: The distribution of the entries.
    """

    distribution: Distribution

    def shapes(self, size: PairSize) -> dict[str, tuple[int, int]]:
        """Return the shapes of A and B."""
        return {
            "basis_a": (size.rank, size.smaller),
            "basis_b": (size.larger, size.columns),
        }

    def draw(self, spec: BasisSpec, size: PairSize) -> dict[str, np.ndarray]:
        """Return A and B as NumPy arrays."""
        a, b = self.shapes(size).values()
        of = self.distribution
        return {
            "basis_a": draw(of, spec, _BASIS_A, a, np.arange(a[1]) % size.rank),
            "basis_b": draw(of, spec, _BASIS_B, b, np.arange(b[1])),
        }

    def draw_ops(self, spec: BasisSpec, size: PairSize, seed: Any = None) -> list[Any]:
        """Return A and B, drawn with `keras.ops`."""
        a, b = self.shapes(size).values()
        of = self.distribution
        in_a = ops.mod(ops.arange(a[1], dtype="int32"), size.rank)
        in_b = ops.arange(b[1], dtype="int32")
        return [
            draw_ops(of, spec, _BASIS_A, a, in_a, seed),
            draw_ops(of, spec, _BASIS_B, b, in_b, seed),
        ]

    def whole_b(self, held: Sequence[np.ndarray], size: PairSize) -> np.ndarray:
        """Return B, which is stored."""
        return held[0]

    def operator(self, held: Sequence[Any], size: PairSize) -> Operator:
        """Return B as the stored matrix."""
        return DenseOperator(*held)

    def operations(self, larger: int, columns: int) -> int:
        """Count the operations of a product of B with one column."""
        return 2 * larger * columns


@dataclass(frozen=True)
class KroneckerBasis:
    """B is the leading part of `left ⊗ right`, and never formed."""

    distribution: Distribution = UNIFORM

    def shapes(self, size: PairSize) -> dict[str, tuple[int, int]]:
        """Return the shapes of A and of the factors of B."""
        return {
            "basis_a": (size.rank, size.smaller),
            "basis_left": (blocks(size.larger), blocks(size.columns)),
            "basis_right": (BLOCK, BLOCK),
        }

    def draw(self, spec: BasisSpec, size: PairSize) -> dict[str, np.ndarray]:
        """Return A and the factors of B as NumPy arrays."""
        a, left, _ = self.shapes(size).values()
        of = self.distribution
        signs = 1 - 2 * (words((spec.seed, _SIGNS), 0, 2, BLOCK) & 1).astype(np.float32)
        return {
            "basis_a": draw(of, spec, _BASIS_A, a),
            "basis_left": draw(of, spec, _BASIS_B, left),
            "basis_right": signs[0][:, None] * _hadamard() * signs[1],
        }

    def draw_ops(self, spec: BasisSpec, size: PairSize, seed: Any = None) -> list[Any]:
        """Return A and the factors of B, drawn with `keras.ops`."""
        a, left, _ = self.shapes(size).values()
        of = self.distribution
        seed = seed_tensor(spec) if seed is None else seed
        signs = ops.cast(
            ops.bitwise_and(words_ops((seed, _SIGNS), 2, BLOCK), 1), "float32"
        )
        signs = ops.subtract(1.0, ops.multiply(2.0, signs))
        hadamard = ops.convert_to_tensor(_hadamard())
        return [
            draw_ops(of, spec, _BASIS_A, a, seed=seed),
            draw_ops(of, spec, _BASIS_B, left, seed=seed),
            ops.expand_dims(signs[0], 1) * hadamard * signs[1],
        ]

    def whole_b(self, held: Sequence[np.ndarray], size: PairSize) -> np.ndarray:
        """Return B, the leading part of the product of its factors."""
        whole = np.kron(*held)[: size.larger, : size.columns]
        return np.ascontiguousarray(whole)

    def operator(self, held: Sequence[Any], size: PairSize) -> Operator:
        """Return B as the product of its factors."""
        left, right = held
        return KroneckerOperator(left, right, size.larger, size.columns)

    def operations(self, larger: int, columns: int) -> int:
        """Count the operations of a product of B with one column.

        With the block size p they are `2·n·r·(p + l/p)` instead of `2·l·n·r`.
        """
        return 2 * blocks(columns) * BLOCK * (BLOCK + blocks(larger))


@functools.cache
def _hadamard() -> np.ndarray:
    """Return Sylvester's Hadamard matrix, `(64, 64)`, ±1 in float32."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < BLOCK:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.flags.writeable = False
    return matrix
