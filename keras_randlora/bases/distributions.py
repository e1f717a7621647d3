"""Distributions of the bases' entries: uniform, normal and ternary.

Each maps 32 random bits (a word) to an entry by an integer threshold, an exact scaling
or a table. It is written for NumPy and for `keras.ops`; both give the same entries, bit
for bit.

Reference for the ternary kinds: Li, Hastie and Church, "Very sparse random
projections", KDD 2006.
"""

from __future__ import annotations

import fractions
import functools
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_randlora.bases.threefry import logical_right_shift

_UNIFORM_STEP = float(np.float32(math.sqrt(3.0) * 2.0**-24))


class Distribution(NamedTuple):
    """A map from 32-bit words to the entries of a basis.

    Attributes:
        dtype: The dtype of the entries: `"float32"`, or `"int8"` for -1, 0 and 1.
        default_sparsity: Maps the larger side `l` of the kernel to the sparsity `s` in
            `P(+1) = P(-1) = 1/s`, or to `None` if the entries are float32.
        entries: Maps `uint32` words (any shape, may be overwritten) and the `BasisSpec`
            to entries.
        entries_ops: The same for an `int32` tensor that holds the bits of the words.
        free_sparsity: Whether the user chooses the sparsity.
    """

    dtype: str
    default_sparsity: Callable[[int], float | None]
    entries: Callable[[np.ndarray, Any], np.ndarray]
    entries_ops: Callable[[Any, Any], Any]
    free_sparsity: bool = False


def _uniform(words: np.ndarray, spec: Any) -> np.ndarray:
    """Map to `m·√3/2**24`, `m` odd and `|m| < 2**24`: exact but for one rounding."""
    words >>= 8
    words <<= 1
    words -= 2**24 - 1
    entries = words.view(np.int32).astype(np.float32)
    entries *= np.float32(_UNIFORM_STEP)
    return entries


def _uniform_ops(words: Any, spec: Any) -> Any:
    """Do what `_uniform` does."""
    doubled = ops.multiply(logical_right_shift(words, 8), 2)
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


def _normal(words: np.ndarray, spec: Any) -> np.ndarray:
    """Look the top 16 bits up in the table of quantiles."""
    return _normal_table()[words >> 16]


def _normal_ops(words: Any, spec: Any) -> Any:
    """Do what `_normal` does."""
    table = ops.convert_to_tensor(_normal_table(), dtype="float32")
    return ops.take(table, logical_right_shift(words, 16), axis=0)


def _ternary(words: np.ndarray, spec: Any) -> np.ndarray:
    """Map the lowest `2**32/s` words to +1, as many of the highest to -1."""
    count = _words_per_sign(spec)
    entries = (words < count).view(np.int8)
    entries -= (words >= 2**32 - count).view(np.int8)
    return entries


def _ternary_ops(words: Any, spec: Any) -> Any:
    """Do what `_ternary` does: with the top bit flipped, signed order is unsigned."""
    count = _words_per_sign(spec)
    ordered = ops.bitwise_xor(words, -(2**31))
    plus = ops.cast(ops.less(ordered, count - 2**31), "int8")
    minus = ops.cast(ops.greater_equal(ordered, 2**31 - count), "int8")
    return ops.subtract(plus, minus)


def _words_per_sign(spec: Any) -> int:
    """Return the number of words of 2**32 that give +1: `floor(2**32 / s)`, exactly."""
    assert spec.sparsity is not None  # BasisSpec sees to that
    return math.floor(2**32 / fractions.Fraction(spec.sparsity))


def _dense(side: int) -> float | None:
    """Return no sparsity: the entries are float32."""
    return None


UNIFORM = Distribution("float32", _dense, _uniform, _uniform_ops)
NORMAL = Distribution("float32", _dense, _normal, _normal_ops)
BINARY = Distribution("int8", lambda side: 2.0, _ternary, _ternary_ops)
SPARSE = Distribution("int8", lambda side: 6.0, _ternary, _ternary_ops)
VERY_SPARSE = Distribution(
    "int8", lambda side: max(2.0, math.sqrt(side)), _ternary, _ternary_ops
)
TERNARY = Distribution(
    "int8", lambda side: None, _ternary, _ternary_ops, free_sparsity=True
)
