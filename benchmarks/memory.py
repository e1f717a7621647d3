"""Current and peak memory of a process, on the host or on the GPU."""

import ctypes
import gc
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_RESET_PEAK = Path("/proc/self/clear_refs")


class HostMemory:
    """Resident size of this process."""

    def release(self) -> None:
        """Return freed memory to the system."""
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)

    def settle(self) -> int:
        """Return freed memory, reset the peak, and return the bytes in use."""
        self.release()
        if sys.platform == "linux":
            try:
                _RESET_PEAK.write_text("5")
            except OSError:  # not allowed: the peak is then that of the whole process
                pass
        return _status("VmRSS") or self.peak()

    def peak(self) -> int:
        """Return the peak of bytes in use since `settle`."""
        unit = 1 if sys.platform == "darwin" else 1024
        whole_run = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return _status("VmHWM") or whole_run

    def available(self) -> int:
        """Return the bytes that new processes can use without swapping."""
        meminfo = Path("/proc/meminfo")
        if meminfo.is_file():
            return _field(meminfo.read_text(), "MemAvailable")
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


class GPUMemory:
    """Memory allocated by the framework on the first GPU, by its own counters.

    JAX's peak cannot be reset: it is that of the whole process.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def release(self) -> None:
        """Do nothing: the framework keeps freed memory for its next step."""

    def settle(self) -> int:
        """Reset the peak if possible, and return the bytes in use."""
        gc.collect()
        if self.backend == "torch":
            import torch

            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        if self.backend == "jax":
            return _jax_statistics()["bytes_in_use"]
        import tensorflow as tf

        tf.config.experimental.reset_memory_stats("GPU:0")
        return tf.config.experimental.get_memory_info("GPU:0")["current"]

    def peak(self) -> int:
        """Return the peak of bytes in use since `settle`."""
        if self.backend == "torch":
            import torch

            return torch.cuda.max_memory_allocated()
        if self.backend == "jax":
            return _jax_statistics()["peak_bytes_in_use"]
        import tensorflow as tf

        return tf.config.experimental.get_memory_info("GPU:0")["peak"]

    def available(self) -> int:
        """Return the bytes free on the first GPU."""
        command = ["nvidia-smi", "--query-gpu=memory.free", "--id=0"]
        command.append("--format=csv,noheader,nounits")
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(answer.stdout) * 2**20


def of(device: str, backend: str) -> HostMemory | GPUMemory:
    """Return the memory of a device."""
    return GPUMemory(backend) if device == "gpu" else HostMemory()


def _jax_statistics() -> dict[str, Any]:
    import jax

    return jax.devices()[0].memory_stats()


def _status(name: str) -> int:
    return _field(_STATUS.read_text(), name) if _STATUS.is_file() else 0


def _field(text: str, name: str) -> int:
    """Return a field in kB of a file in /proc as bytes, 0 where it is missing."""
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0
