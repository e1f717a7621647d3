"""The memory of the device that Keras computes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras


def free_bytes() -> int | None:
    """Return the bytes that are free on the device, `None` where nobody says."""
    return _ON_DEVICE[keras.backend.backend()]()


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:  # not Linux
        return None
    sizes = dict(line.split(":", 1) for line in lines)
    return int(sizes["MemAvailable"].split()[0]) * 1024


def _jax() -> int | None:
    import jax

    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return _of_machine()
    known = device.memory_stats() or {}
    if "bytes_limit" not in known:
        return None
    return int(known["bytes_limit"] - known["bytes_in_use"])


def _tensorflow() -> int | None:
    import tensorflow as tf

    # It says what it has taken on a GPU, and not of how much.
    return None if tf.config.list_logical_devices("GPU") else _of_machine()


def _torch() -> int | None:
    import torch

    device = keras.ops.zeros(()).device
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _of_machine() if device.type == "cpu" else None


_ON_DEVICE: dict[str, Callable[[], int | None]] = {
    "jax": _jax,
    "tensorflow": _tensorflow,
    "torch": _torch,
}
