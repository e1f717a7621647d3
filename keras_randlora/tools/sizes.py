"""Bytes of variables and dtypes, and their formatting."""

from __future__ import annotations

import math

import keras
import ml_dtypes
import numpy as np


def item_size(dtype: str) -> int:
    """Return the bytes of one entry."""
    name = keras.backend.standardize_dtype(dtype)
    return np.dtype(getattr(ml_dtypes, name, name)).itemsize


def bytes_of(variable: keras.Variable) -> int:
    """Return the bytes of a variable's values."""
    return math.prod(variable.shape) * item_size(variable.dtype)


def in_words(count: float) -> str:
    """Format a number of bytes with three digits and a decimal unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
