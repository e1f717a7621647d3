"""Flags with which XLA compiles quickly, of the version that is installed.

XLA ends the process, without a word, for a flag that it does not know.
"""

import importlib.metadata
import re


def of_version(jaxlib):
    """Return the flags for a version such as "0.10.2"."""
    flags = [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
    if tuple(map(int, re.findall(r"\d+", jaxlib)[:2])) < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)


def of_installed():
    """Return the flags for the installed XLA, none without JAX."""
    try:
        return of_version(importlib.metadata.version("jaxlib"))
    except importlib.metadata.PackageNotFoundError:
        return ""
