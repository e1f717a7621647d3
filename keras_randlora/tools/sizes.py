"""Bytes of variables and dtypes, and how they are written."""

from __future__ import annotations

import math

import keras

_ITEM_SIZES = {"int8": 1, "uint8": 1, "float16": 2, "bfloat16": 2, "float64": 8}


def item_size(dtype: str) -> int:
    """Return the bytes of one number."""
    return _ITEM_SIZES.get(dtype, 4)


def bytes_of(variable: keras.Variable) -> int:
    """Return the bytes of a variable's values."""
    return math.prod(variable.shape) * item_size(variable.dtype)


def in_words(count: float) -> str:
    """Return a number of bytes with three digits and its decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
