"""Tracing by a compiler: detection, and separate traces for a block."""

from __future__ import annotations

import contextlib
from typing import Any

import keras

from keras_randlora.tools import keras_internals


def is_traced() -> bool:
    """Return whether a compiler or a function transform is tracing."""
    if keras_internals.in_stateless_scope():
        return True
    return _TRACED[keras.backend.backend()]()


def in_graph() -> bool:
    """Return whether TensorFlow is building a graph; `False` on other backends."""
    return keras.backend.backend() == "tensorflow" and _tensorflow()


def traced_apart(label: str) -> contextlib.AbstractContextManager[Any]:
    """Let JAX compile the functions of the block separately, and keep both versions.

    A Python flag is not an argument of a compiled function. Without this, JAX would run
    in the block what it compiled outside, and the other way round. torch checks flags
    itself; on TensorFlow this does nothing.

    Args:
        label: Identifies the block.
    """
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    from jax.experimental.xla_metadata import set_xla_metadata

    return set_xla_metadata(keras_randlora=label)


def _jax() -> bool:
    import jax

    return isinstance(jax.numpy.zeros(()), jax.core.Tracer)


def _tensorflow() -> bool:
    import tensorflow as tf

    return tf.inside_function()


def _torch() -> bool:
    import torch

    return torch.compiler.is_compiling()


_TRACED = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
