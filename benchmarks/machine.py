"""Machine and versions of a result."""

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("keras", "keras-hub", "torch", "jax", "tensorflow", "peft")
PACKAGES += ("transformers", "numpy")


def describe() -> dict[str, Any]:
    """Return processor, cores, memory, GPU, system and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(_memory() / 1e9, 1),
        "gpu": gpu(),
        "system": platform.system(),
        "python": platform.python_version(),
        "commit": _commit(),
        "versions": {name: version_of(name) for name in PACKAGES},
    }


def gpu() -> str | None:
    """Return the name of the first NVIDIA GPU, `None` without one."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = found.stdout.strip().splitlines()
    return names[0] if found.returncode == 0 and names else None


def _processor() -> str:
    """Return the processor's name, with the features that matter for matmuls."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return platform.processor() or platform.machine()
    text = cpuinfo.read_text()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    wide = [flag for flag in ("avx2", "avx512f", "amx_bf16") if f" {flag} " in text]
    return " ".join([name.group(1) if name else platform.machine(), *wide])


def _commit() -> str | None:
    """Return the measured commit, marked if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parent
        )
    except OSError:
        return None
    return found.stdout.strip() or None


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def version_of(name: str) -> str | None:
    """Return the version of a package or of its nightly build, `None` without both."""
    for installed in (name, f"{name}-nightly"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(installed)
    return None
