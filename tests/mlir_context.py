"""One MLIR context for all that JAX lowers in a process.

JAX makes a new one for each program, which takes a quarter of the tests' time: they
lower thousands of programs of a few operations.
"""

import functools

from jax._src.interpreters import mlir


def keep_one():
    """Let JAX use the same context from now on."""
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)
