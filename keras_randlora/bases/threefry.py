"""Threefry-2x32 (20 rounds): random words of counters, in NumPy and in `keras.ops`.

Reference: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_KEY_PARITY = 0x1BD11BDA


def threefry_2x32(
    key: tuple[int, int], x0: np.ndarray, x1: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Replace the counters `x0`, `x1` (uint32, equal shapes) by their random words."""
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
    """Return the words of the counters `x0`, `x1`, int32 tensors of equal shapes.

    Args:
        key: The seed's bits, an int32 tensor, and a small integer.
        x0: Counters.
        x1: Counters.
    """
    schedule = key[0], key[1], key[0] ^ key[1] ^ signed(_KEY_PARITY)
    x0 = x0 + schedule[0]
    x1 = x1 + schedule[1]
    for step in range(1, 6):
        for distance in _ROTATIONS[(step - 1) % 2]:
            x0 = x0 + x1
            rotated = ops.left_shift(x1, distance)
            rotated = rotated | logical_right_shift(x1, 32 - distance)
            x1 = rotated ^ x0
        x0 = x0 + schedule[step % 3]
        x1 = x1 + (schedule[(step + 1) % 3] + step)
    return x0, x1


def words(key: tuple[int, int], start: int, stop: int, columns: int) -> np.ndarray:
    """Return the words of rows `start` to `stop`; one counter gives two columns."""
    pairs = (columns + 1) // 2
    counters = np.empty((2, stop - start, pairs), np.uint32)
    counters[0] = np.arange(start, stop, dtype=np.uint32)[:, None]
    counters[1] = np.arange(pairs, dtype=np.uint32)
    words = np.empty((stop - start, pairs, 2), np.uint32)
    words[..., 0], words[..., 1] = threefry_2x32(key, *counters)
    return words.reshape(stop - start, 2 * pairs)[:, :columns]


def words_ops(key: tuple[Any, Any], rows: int, columns: int) -> Any:
    """Return the words of a whole `(rows, columns)` basis as an int32 tensor."""
    pairs = (columns + 1) // 2
    row = ops.expand_dims(ops.arange(rows, dtype="int32"), 1)
    x0 = ops.broadcast_to(row, (rows, pairs))
    x1 = ops.broadcast_to(ops.arange(pairs, dtype="int32"), (rows, pairs))
    words = ops.stack(threefry_2x32_ops(key, x0, x1), axis=-1)
    return ops.reshape(words, (rows, 2 * pairs))[:, :columns]


def logical_right_shift(x: Any, distance: int) -> Any:
    """Shift an int32 tensor right and fill with zeros."""
    return ops.right_shift(x, distance) & (2 ** (32 - distance) - 1)


def signed(word: int) -> int:
    """Return the int32 that has the low 32 bits of `word`."""
    return (word + 2**31) % 2**32 - 2**31


def _key_schedule(key: tuple[int, int]) -> tuple[int, int, int]:
    """Return the three key words that Threefry injects in turn."""
    return key[0], key[1], key[0] ^ key[1] ^ _KEY_PARITY
