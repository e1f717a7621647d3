"""Memory of this process: resident, and its peak since the last reset."""

import ctypes
import gc
import os
import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def settle() -> int:
    """Give freed memory back, start the peak anew, return the resident bytes."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # not allowed: the peak is then that of the whole process
            pass
    return resident()


def resident() -> int:
    """Return the bytes of memory that the process holds."""
    return _status("VmRSS") or peak()


def peak() -> int:
    """Return the highest number of resident bytes since `settle`."""
    kilobytes = 1 if sys.platform == "darwin" else 1024
    whole_run = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes
    return _status("VmHWM") or whole_run


def available() -> int:
    """Return the bytes that new processes may use without swapping."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        return _field(meminfo.read_text(), "MemAvailable")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def settle_device(backend: str) -> None:
    """Start the peak of the GPU's memory anew where the framework can do that."""
    if backend == "torch":
        import torch

        torch.cuda.reset_peak_memory_stats()
    elif backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.reset_memory_stats("GPU:0")


def device_peak(backend: str) -> int:
    """Return the peak of the GPU's memory, in bytes.

    JAX's counts from the start of the process, loading included.
    """
    if backend == "torch":
        import torch

        return torch.cuda.max_memory_allocated()
    if backend == "jax":
        import jax

        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def _status(name: str) -> int:
    return _field(_STATUS.read_text(), name) if _STATUS.is_file() else 0


def _field(text: str, name: str) -> int:
    """Return a field in kB of a file in /proc as bytes, 0 where it is missing."""
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0
