"""Random matrices drawn from a seed, the same on every backend.

Each entry is a function of `(seed, which matrix, row, column)` only. The counter-based
generator Threefry-2x32 hashes these to a word, and a `Distribution` maps the word to an
entry. So the first rows and columns of a larger matrix are the smaller matrix, and
`draw` (NumPy) and `draw_ops` (`keras.ops`) agree bit for bit.

Zeros can reduce the rank of the update: a zero column of A is a zero column of every
term, and more than `num_bases` columns of A in one direction are linearly dependent in
the update. So the entries in `guarded` are never 0: where the word gives 0, its lowest
bit gives the sign. With `A[c % rank, c]` and `B[c, c]` guarded every distribution
reaches full rank, except `"binary"` with rank 2, where A has columns in two directions
only (95 to 100 %).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from keras_randlora.bases.distributions import Distribution
from keras_randlora.bases.threefry import signed, words, words_ops
from keras_randlora.tools import shown

if TYPE_CHECKING:
    from keras_randlora.bases.spec import BasisSpec

_CHUNK_COUNTERS = 1 << 15  # few enough for the temporaries to stay in cache


def draw(
    distribution: Distribution,
    spec: BasisSpec,
    which: int,
    shape: tuple[int, int],
    guarded: np.ndarray | None = None,
) -> np.ndarray:
    """Return the entries of a matrix, float32 or int8.

    Args:
        distribution: Maps words to entries.
        spec: The seed and the sparsity.
        which: Index of the matrix: one seed draws several.
        shape: Rows and columns.
        guarded: `guarded[c]` is the row in which column c is never 0; for
            distributions with zeros.
    """
    rows, columns = shape
    basis = np.empty(shape, distribution.dtype)
    chunk = max(1, _CHUNK_COUNTERS // max(1, (columns + 1) // 2))
    for start in shown(range(0, rows, chunk), "Drawing the bases", "block"):
        stop = min(start + chunk, rows)
        drawn = words((spec.seed, which), start, stop, columns)
        if guarded is None or spec.sparsity is None:
            basis[start:stop] = distribution.entries(drawn, spec)
            continue
        (column,) = np.nonzero((start <= guarded) & (guarded < stop))
        row = guarded[column] - start
        sign = np.where(drawn[row, column] & 1, -1, 1)
        block = distribution.entries(drawn, spec)
        block[row, column] = np.where(block[row, column], block[row, column], sign)
        basis[start:stop] = block
    return basis


def draw_ops(
    distribution: Distribution,
    spec: BasisSpec,
    which: int,
    shape: tuple[int, int],
    guarded: Any | None = None,
    seed: Any | None = None,
) -> Any:
    """Return what `draw` returns, drawn with `keras.ops`, also in a trace.

    Args:
        distribution: As for `draw`.
        spec: As for `draw`.
        which: As for `draw`.
        shape: As for `draw`.
        guarded: As for `draw`, an int32 tensor.
        seed: The result of `seed_tensor`, if it must not be a constant of the trace;
            default: the spec's.
    """
    key = (seed_tensor(spec) if seed is None else seed, which)
    drawn = words_ops(key, *shape)
    entries = distribution.entries_ops(drawn, spec)
    if spec.sparsity is None:
        return entries
    row = ops.expand_dims(ops.arange(shape[0], dtype="int32"), 1)
    missing = ops.logical_and(ops.equal(row, guarded), ops.equal(entries, 0))
    sign = ops.subtract(1, ops.multiply(2, ops.bitwise_and(drawn, 1)))
    return ops.where(missing, ops.cast(sign, "int8"), entries)


def seed_tensor(spec: BasisSpec) -> Any:
    """Return the bits of the seed as an int32 tensor."""
    return ops.convert_to_tensor(signed(spec.seed), dtype="int32")
