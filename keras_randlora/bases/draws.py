"""Draws the frozen random bases A and B from a seed, the same on every backend.

Each entry is a function of `(seed, which basis, row, column)` and of nothing else: the
counter-based generator Threefry-2x32 (20 rounds) hashes them to a 32-bit word, and an
integer threshold, an exact scaling or a table makes the word an entry. Hence the first
rows and columns of a larger B are the smaller B, the first columns of a wider A are the
narrower A, and `draw_a` (NumPy) and `draw_a_ops` (`keras.ops`) agree bit for bit.

| `basis` | entries before `scale_of` | dtype |
|---|---|---|
| `"uniform"` | U(-√3, √3) | float32 |
| `"normal"` | N(0, 1), as 65,536 equally likely values | float32 |
| `"binary"` | ±1 | int8 |
| `"sparse"` | ±1 with probability 1/6 each, else 0 | int8 |
| `"very_sparse"` | ±1 with probability 1/√l each, else 0 | int8 |
| `"ternary"` | ±1 with probability 1/`sparsity` each, else 0 | int8 |
| `"kronecker"` | A: U(-√3, √3); B: the leading part of `left ⊗ right` | float32 |

The left factor is U(-√3, √3), the right one a Hadamard matrix of 64 rows with random
signs of its rows and columns, so that each entry of B is U(-√3, √3) as well. All
leading blocks of `right` are regular, and those of `left` with probability 1.

Zeros can cost the update its rank: a zero column of A is a zero column of every term,
and more than `num_bases` columns of A in one direction are linearly dependent in the
update. Therefore the entries `A[c % rank, c]` and `B[c, c]` are never 0: where the word
gives 0, its lowest bit gives the sign. Every distribution then reaches full rank, but
for `"binary"` with rank 2, where A has columns in two directions only (95 to 100 %).

References:
    Albert et al., "RandLoRA: full-rank parameter-efficient fine-tuning of large
        models", ICLR 2025.
    Li, Hastie and Church, "Very sparse random projections", KDD 2006.
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import dataclasses
import fractions
import functools
import math
import numbers
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_randlora.tools import shown

BLOCK = 64  # side of the right factor of `"kronecker"`: near √l for common kernels
_BASIS_A, _BASIS_B, _SIGNS = 0, 1, 2
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_KEY_PARITY = 0x1BD11BDA
_CHUNK_COUNTERS = 1 << 15  # few enough for the temporaries to stay in cache
_UNIFORM_STEP = float(np.float32(math.sqrt(3.0) * 2.0**-24))
_MAX_SPARSITY = 2.0**31


@dataclasses.dataclass(frozen=True)
class BasisSpec:
    """What determines the entries of a pair of bases.

    Attributes:
        basis: A name in `DISTRIBUTIONS`.
        sparsity: The result of `resolve_sparsity`: `s` in `P(±1) = 1/s` for the ternary
            kinds, `None` for the dense ones.
        seed: An integer in `[0, 2**32)`.

    Raises:
        TypeError: If `sparsity` or `seed` is not a number of the right kind.
        ValueError: If a value is unknown or out of range.
    """

    basis: str
    sparsity: float | None
    seed: int

    def __post_init__(self) -> None:
        """Check the values and store plain Python numbers."""
        dense = _distribution(self.basis).dtype == "float32"
        if dense != (self.sparsity is None):
            raise ValueError(
                f"`sparsity` must be {'None' if dense else 'a number'} for "
                f"basis={self.basis!r}; `resolve_sparsity` gives the right value. "
                f"Received: sparsity={self.sparsity!r}."
            )
        if self.sparsity is not None:
            object.__setattr__(self, "sparsity", _checked_sparsity(self.sparsity))
        object.__setattr__(self, "seed", _checked_seed(self.seed))


class Distribution(NamedTuple):
    """How 32-bit words become the entries of a basis.

    Attributes:
        dtype: The dtype of the entries.
        default_sparsity: The larger side `l` of the kernel to the sparsity, `None` if
            there is none.
        entries: `uint32` words (any shape, may be overwritten) and the spec to entries.
        entries_ops: The same for an `int32` tensor that holds the bits of the words.
    """

    dtype: str
    default_sparsity: Callable[[int], float | None]
    entries: Callable[[np.ndarray, BasisSpec], np.ndarray]
    entries_ops: Callable[[Any, BasisSpec], Any]


def resolve_sparsity(
    basis: str, sparsity: float | None, larger_side: int
) -> float | None:
    """Return the `s` of `P(+1) = P(-1) = 1/s`, or `None` for a dense basis.

    Args:
        basis: A name in `DISTRIBUTIONS`.
        sparsity: For `basis="ternary"` a number from 2 to 2**31; `None` otherwise.
        larger_side: `l`, the larger side of the kernel as a matrix; `"very_sparse"`
            takes `sqrt(l)`, but at least 2.

    Raises:
        TypeError: If `sparsity` is not a number.
        ValueError: If `basis` is unknown, if `sparsity` is missing or out of range, or
            if it is given with another basis than `"ternary"`.

    Example:
        >>> resolve_sparsity("very_sparse", None, 4096)
        64.0
    """
    default = _distribution(basis).default_sparsity(larger_side)
    if basis == "ternary":
        if sparsity is None:
            raise ValueError(
                "`sparsity` must be given with basis='ternary', for example "
                "sparsity=100. Received: sparsity=None."
            )
        return _checked_sparsity(sparsity)
    if sparsity is not None:
        _checked_sparsity(sparsity)
        raise ValueError(
            "`sparsity` can be chosen only with basis='ternary'. "
            f"Received: sparsity={sparsity!r} with basis={basis!r}."
        )
    return default


def scale_of(spec: BasisSpec) -> float:
    """Return the factor that gives the drawn entries unit variance.

    It is `sqrt(s/2)` for the ternary kinds, not counting the entries that the guard
    against zero columns sets, and 1 for the dense ones.
    """
    return 1.0 if spec.sparsity is None else math.sqrt(spec.sparsity / 2.0)


def draw_a(spec: BasisSpec, rank: int, columns: int) -> np.ndarray:
    """Return the shared basis A, `(rank, columns)`, float32 or int8."""
    return _draw(spec, _BASIS_A, rank, columns, np.arange(columns) % rank)


def draw_b(spec: BasisSpec, rows: int, columns: int) -> np.ndarray:
    """Return the bases B of all terms, `(rows, columns)`, float32 or int8.

    The columns `j, n+j, 2n+j, …` are B_j, with `n` the number of bases. Of a
    `"kronecker"` basis this is the whole that the factors stand for.
    """
    if spec.basis == "kronecker":
        left, right = draw_left(spec, rows, columns), draw_right(spec)
        return np.ascontiguousarray(np.kron(left, right)[:rows, :columns])
    return _draw(spec, _BASIS_B, rows, columns, np.arange(columns))


def draw_left(spec: BasisSpec, rows: int, columns: int) -> np.ndarray:
    """Return the left Kronecker factor, `(ceil(rows / 64), ceil(columns / 64))`."""
    sides = blocks(rows), blocks(columns)
    return _draw(spec, _BASIS_B, *sides, np.arange(sides[1]))


def draw_right(spec: BasisSpec) -> np.ndarray:
    """Return the right Kronecker factor, `(64, 64)`, ±1 in float32."""
    signs = 1 - 2 * (_words((spec.seed, _SIGNS), 0, 2, BLOCK) & 1).astype(np.float32)
    return signs[0][:, None] * _hadamard() * signs[1]


def draw_a_ops(
    spec: BasisSpec, rank: int, columns: int, seed: Any | None = None
) -> Any:
    """Return the same numbers as `draw_a`, drawn with `keras.ops`, also in a trace.

    Args:
        spec: What determines the entries.
        rank: Rows of A.
        columns: Columns of A.
        seed: The result of `seed_tensor`, where it must not be a constant of the
            trace; default: the spec's.
    """
    guarded = ops.mod(ops.arange(columns, dtype="int32"), rank)
    return _draw_ops(spec, seed, _BASIS_A, rank, columns, guarded)


def draw_b_ops(
    spec: BasisSpec, rows: int, columns: int, seed: Any | None = None
) -> Any:
    """Return the same numbers as `draw_b`; see `draw_a_ops`."""
    if spec.basis == "kronecker":
        left, right = (
            draw_left_ops(spec, rows, columns, seed),
            draw_right_ops(spec, seed),
        )
        return kronecker(left, right, rows, columns)
    guarded = ops.arange(columns, dtype="int32")
    return _draw_ops(spec, seed, _BASIS_B, rows, columns, guarded)


def draw_left_ops(
    spec: BasisSpec, rows: int, columns: int, seed: Any | None = None
) -> Any:
    """Return the same numbers as `draw_left`; see `draw_a_ops`."""
    sides = blocks(rows), blocks(columns)
    guarded = ops.arange(sides[1], dtype="int32")
    return _draw_ops(spec, seed, _BASIS_B, *sides, guarded)


def draw_right_ops(spec: BasisSpec, seed: Any | None = None) -> Any:
    """Return the same numbers as `draw_right`; see `draw_a_ops`."""
    key = (seed_tensor(spec) if seed is None else seed, _SIGNS)
    signs = ops.cast(ops.bitwise_and(_words_ops(key, 2, BLOCK), 1), "float32")
    signs = ops.subtract(1.0, ops.multiply(2.0, signs))
    hadamard = ops.convert_to_tensor(_hadamard())
    return ops.expand_dims(signs[0], 1) * hadamard * signs[1]


def blocks(size: int) -> int:
    """Return how many blocks of `BLOCK` rows or columns hold `size` of them."""
    return -(-size // BLOCK)


def kronecker(left: Any, right: Any, rows: int, columns: int) -> Any:
    """Return the leading `(rows, columns)` of `left ⊗ right`."""
    whole = left[:, None, :, None] * right[None, :, None, :]
    shape = left.shape[0] * BLOCK, left.shape[1] * BLOCK
    return ops.reshape(whole, shape)[:rows, :columns]


def seed_tensor(spec: BasisSpec) -> Any:
    """Return the bits of the seed as an int32 tensor, for `draw_b_ops`."""
    return ops.convert_to_tensor(_signed(spec.seed), dtype="int32")


def threefry_2x32(
    key: tuple[int, int], x0: np.ndarray, x1: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Replace the counters `x0`, `x1` (uint32, one shape) by their random words."""
    schedule = _key_schedule(key)
    rotated = np.empty_like(x1)
    x0 += schedule[0]
    x1 += schedule[1]
    for step in range(1, 6):
        for distance in _ROTATIONS[(step - 1) % 2]:
            x0 += x1
            np.left_shift(x1, distance, out=rotated)
            x1 >>= 32 - distance
            x1 |= rotated
            x1 ^= x0
        x0 += schedule[step % 3]
        x1 += (schedule[(step + 1) % 3] + step) % 2**32
    return x0, x1


def threefry_2x32_ops(key: tuple[Any, Any], x0: Any, x1: Any) -> tuple[Any, Any]:
    """Return the words of the counters `x0`, `x1`, all int32 tensors of one shape.

    Args:
        key: Two int32, as tensors or integers.
        x0: Counters.
        x1: Counters.
    """
    both = ops.bitwise_xor(ops.bitwise_xor(key[0], key[1]), _signed(_KEY_PARITY))
    schedule = key[0], key[1], both
    x0 = ops.add(x0, schedule[0])
    x1 = ops.add(x1, schedule[1])
    for step in range(1, 6):
        for distance in _ROTATIONS[(step - 1) % 2]:
            x0 = ops.add(x0, x1)
            low = _logical_right_shift(x1, 32 - distance)
            x1 = ops.bitwise_or(ops.left_shift(x1, distance), low)
            x1 = ops.bitwise_xor(x1, x0)
        x0 = ops.add(x0, schedule[step % 3])
        x1 = ops.add(x1, ops.add(schedule[(step + 1) % 3], step))
    return x0, x1


def _draw(
    spec: BasisSpec, which: int, rows: int, columns: int, guarded: np.ndarray
) -> np.ndarray:
    """Draw in chunks of rows; `guarded[c]` is the row where column c is never 0."""
    distribution = DISTRIBUTIONS[spec.basis]
    basis = np.empty((rows, columns), distribution.dtype)
    chunk = max(1, _CHUNK_COUNTERS // max(1, (columns + 1) // 2))
    for start in shown(range(0, rows, chunk), "Drawing the bases", "block"):
        stop = min(start + chunk, rows)
        words = _words((spec.seed, which), start, stop, columns)
        if spec.sparsity is None:
            basis[start:stop] = distribution.entries(words, spec)
            continue
        (column,) = np.nonzero((start <= guarded) & (guarded < stop))
        row = guarded[column] - start
        sign = np.where(words[row, column] & 1, -1, 1)
        block = distribution.entries(words, spec)
        block[row, column] = np.where(block[row, column], block[row, column], sign)
        basis[start:stop] = block
    return basis


def _draw_ops(
    spec: BasisSpec, seed: Any, which: int, rows: int, columns: int, guarded: Any
) -> Any:
    """Do what `_draw` does with `keras.ops`, in one piece."""
    key = (seed_tensor(spec) if seed is None else seed, which)
    words = _words_ops(key, rows, columns)
    entries = DISTRIBUTIONS[spec.basis].entries_ops(words, spec)
    if spec.sparsity is None:
        return entries
    row = ops.expand_dims(ops.arange(rows, dtype="int32"), 1)
    missing = ops.logical_and(ops.equal(row, guarded), ops.equal(entries, 0))
    sign = ops.subtract(1, ops.multiply(2, ops.bitwise_and(words, 1)))
    return ops.where(missing, ops.cast(sign, "int8"), entries)


def _words(key: tuple[int, int], start: int, stop: int, columns: int) -> np.ndarray:
    """Return the words of rows `start` to `stop`; a counter serves two columns."""
    pairs = (columns + 1) // 2
    counters = np.empty((2, stop - start, pairs), np.uint32)
    counters[0] = np.arange(start, stop, dtype=np.uint32)[:, None]
    counters[1] = np.arange(pairs, dtype=np.uint32)
    words = np.empty((stop - start, pairs, 2), np.uint32)
    words[..., 0], words[..., 1] = threefry_2x32(key, *counters)
    return words.reshape(stop - start, 2 * pairs)[:, :columns]


def _words_ops(key: tuple[Any, Any], rows: int, columns: int) -> Any:
    """Return the words of a whole `(rows, columns)` basis as an int32 tensor."""
    pairs = (columns + 1) // 2
    row = ops.expand_dims(ops.arange(rows, dtype="int32"), 1)
    x0 = ops.broadcast_to(row, (rows, pairs))
    x1 = ops.broadcast_to(ops.arange(pairs, dtype="int32"), (rows, pairs))
    words = ops.stack(threefry_2x32_ops(key, x0, x1), axis=-1)
    return ops.reshape(words, (rows, 2 * pairs))[:, :columns]


def _uniform(words: np.ndarray, spec: BasisSpec) -> np.ndarray:
    """Map to `m·√3/2**24`, `m` odd and `|m| < 2**24`: exact but for one rounding."""
    words >>= 8
    words <<= 1
    words -= 2**24 - 1
    entries = words.view(np.int32).astype(np.float32)
    entries *= np.float32(_UNIFORM_STEP)
    return entries


def _uniform_ops(words: Any, spec: BasisSpec) -> Any:
    """Do what `_uniform` does."""
    doubled = ops.multiply(_logical_right_shift(words, 8), 2)
    odd = ops.subtract(doubled, 2**24 - 1)
    return ops.multiply(ops.cast(odd, "float32"), _UNIFORM_STEP)


@functools.cache
def _normal_table() -> np.ndarray:
    """Return the midpoint quantiles of N(0, 1), `(2**16,)`, with unit variance."""
    half = 2**15
    quantile = statistics.NormalDist().inv_cdf
    upper = [quantile((half + i + 0.5) / (2 * half)) for i in range(half)]
    deviation = math.sqrt(math.fsum(x * x for x in upper) / half)
    positive = np.array([x / deviation for x in upper]).astype(np.float32)
    table = np.concatenate([-positive[::-1], positive])
    table.flags.writeable = False
    return table


def _normal(words: np.ndarray, spec: BasisSpec) -> np.ndarray:
    """Look the top 16 bits up in the table of quantiles."""
    return _normal_table()[words >> 16]


def _normal_ops(words: Any, spec: BasisSpec) -> Any:
    """Do what `_normal` does."""
    table = ops.convert_to_tensor(_normal_table(), dtype="float32")
    return ops.take(table, _logical_right_shift(words, 16), axis=0)


def _ternary(words: np.ndarray, spec: BasisSpec) -> np.ndarray:
    """Map the lowest `2**32/s` words to +1, as many of the highest to -1."""
    count = _words_per_sign(spec)
    entries = (words < count).view(np.int8)
    entries -= (words >= 2**32 - count).view(np.int8)
    return entries


def _ternary_ops(words: Any, spec: BasisSpec) -> Any:
    """Do what `_ternary` does: with the top bit flipped, signed order is unsigned."""
    count = _words_per_sign(spec)
    ordered = ops.bitwise_xor(words, -(2**31))
    plus = ops.cast(ops.less(ordered, count - 2**31), "int8")
    minus = ops.cast(ops.greater_equal(ordered, 2**31 - count), "int8")
    return ops.subtract(plus, minus)


def _words_per_sign(spec: BasisSpec) -> int:
    """Return how many of the 2**32 words give +1: `floor(2**32 / s)`, exactly."""
    assert spec.sparsity is not None  # BasisSpec sees to that
    return math.floor(2**32 / fractions.Fraction(spec.sparsity))


DISTRIBUTIONS: dict[str, Distribution] = {
    "uniform": Distribution("float32", lambda side: None, _uniform, _uniform_ops),
    "normal": Distribution("float32", lambda side: None, _normal, _normal_ops),
    "binary": Distribution("int8", lambda side: 2.0, _ternary, _ternary_ops),
    "sparse": Distribution("int8", lambda side: 6.0, _ternary, _ternary_ops),
    "very_sparse": Distribution(
        "int8", lambda side: max(2.0, math.sqrt(side)), _ternary, _ternary_ops
    ),
    "ternary": Distribution("int8", lambda side: None, _ternary, _ternary_ops),
    "kronecker": Distribution("float32", lambda side: None, _uniform, _uniform_ops),
}


@functools.cache
def _hadamard() -> np.ndarray:
    """Return Sylvester's Hadamard matrix, `(64, 64)`, ±1 in float32."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < BLOCK:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix.flags.writeable = False
    return matrix


def _logical_right_shift(x: Any, distance: int) -> Any:
    """Shift an int32 tensor right and fill with zeros."""
    return ops.bitwise_and(ops.right_shift(x, distance), 2 ** (32 - distance) - 1)


def _signed(word: int) -> int:
    """Return the int32 that has the low 32 bits of `word`."""
    return (word + 2**31) % 2**32 - 2**31


def _key_schedule(key: tuple[int, int]) -> tuple[int, int, int]:
    """Return the three words that Threefry injects in turn."""
    return key[0], key[1], key[0] ^ key[1] ^ _KEY_PARITY


def _distribution(basis: str) -> Distribution:
    """Look a distribution up by name."""
    if basis not in DISTRIBUTIONS:
        raise ValueError(
            f"`basis` must be one of {', '.join(map(repr, DISTRIBUTIONS))}. "
            f"Received: basis={basis!r}."
        )
    return DISTRIBUTIONS[basis]


def _checked_sparsity(sparsity: Any) -> float:
    """Return a valid sparsity as a float."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real):
        raise TypeError(
            f"`sparsity` must be a number. Received: sparsity={sparsity!r}."
        )
    value = float(sparsity)
    if not 2.0 <= value <= _MAX_SPARSITY:
        raise ValueError(
            f"`sparsity` must be from 2 to 2**31. Received: sparsity={sparsity!r}."
        )
    return value


def _checked_seed(seed: Any) -> int:
    """Return a valid seed as an int."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(f"`seed` must be an integer. Received: seed={seed!r}.")
    value = int(seed)
    if not 0 <= value < 2**32:
        raise ValueError(f"`seed` must be in [0, 2**32). Received: seed={seed!r}.")
    return value
