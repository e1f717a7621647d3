"""Validation of arguments."""

from __future__ import annotations

import math
import numbers
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def positive_integer(name: str, value: Any) -> int:
    """Return `value` as an `int`.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is not positive.
    """
    number = _integer(name, value, "a positive integer")
    if number <= 0:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value}."
        )
    return number


def uint32(name: str, value: Any) -> int:
    """Return `value` as an unsigned 32-bit `int`.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is not in `[0, 2**32)`.
    """
    wanted = "an integer in [0, 2**32)"
    number = _integer(name, value, wanted)
    if not 0 <= number < 2**32:
        raise ValueError(f"`{name}` must be {wanted}. Received: {name}={value}.")
    return number


def real_number(name: str, value: Any) -> float:
    """Return `value` as a `float`, which may be infinite or NaN.

    Raises:
        TypeError: It is not a real number.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` must be a number. Received: {name}={value!r} "
            f"(of type {type(value).__name__})."
        )
    return float(value)


def finite_number(name: str, value: Any) -> float:
    """Return `value` as a finite `float`.

    Raises:
        TypeError: It is not a real number.
        ValueError: It is infinite or NaN.
    """
    number = real_number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"`{name}` must be finite. Received: {name}={value}.")
    return number


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a local file or folder.

    Raises:
        ValueError: It is the URL of a bucket or a hub, which `Path` would turn into a
            local folder.
    """
    text = os.fspath(path)
    if match := re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+)://", text):
        raise ValueError(
            f"Files are read and written on local disks only, not on '{match[1]}://'. "
            "Save to a local path and copy the file, or mount the bucket. Received: "
            f"'{text}'."
        )
    return Path(text)


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Check that `value` is allowed.

    Raises:
        ValueError: It is not.
    """
    if value not in allowed:
        raise ValueError(
            f"`{name}` must be one of {list(allowed)}. Received: {name}={value!r}."
        )


def _integer(name: str, value: Any, wanted: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"`{name}` must be {wanted}. Received: {name}={value!r} "
            f"(of type {type(value).__name__})."
        )
    return int(value)
