"""Low-overhead reshape, transpose, padding and conversion of backend tensors.

torch runs eagerly, and a call of `keras.ops` costs some 20 µs before torch begins. The
twenty calls of a narrow layer cost more than its matmuls. JAX and TensorFlow trace a
step once, so `keras.ops` costs nothing there.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Array = Any


def reshape(tensor: Array, shape: Any) -> Array:
    """Return the tensor in another shape."""
    return tensor.reshape(shape) if _is_torch(tensor) else ops.reshape(tensor, shape)


def transpose(tensor: Array, axes: tuple[int, ...] = (1, 0)) -> Array:
    """Return the tensor with permuted axes, by default the transposed matrix."""
    return tensor.permute(axes) if _is_torch(tensor) else ops.transpose(tensor, axes)


def with_rows(tensor: Array, rows: int) -> Array:
    """Return a matrix with `rows` rows of zeros appended."""
    if _is_torch(tensor):
        import torch

        return torch.nn.functional.pad(tensor, (0, 0, 0, rows))
    return ops.pad(tensor, [[0, rows], [0, 0]])


def cast(tensor: Array, dtype: Any) -> Array:
    """Return the tensor in another dtype, or itself if it has that dtype."""
    if keras.backend.standardize_dtype(tensor.dtype) == dtype:
        return tensor
    return ops.cast(tensor, dtype)


def is_sparse(tensor: Array) -> bool:
    """Return whether a tensor is sparse."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return getattr(tensor, "layout", torch.strided) is not torch.strided
    if backend == "tensorflow":
        import tensorflow as tf

        return isinstance(tensor, tf.SparseTensor)
    from jax.experimental import sparse

    return isinstance(tensor, sparse.JAXSparse)


def is_ragged(tensor: Array) -> bool:
    """Return whether a tensor is ragged."""
    if keras.backend.backend() == "torch":
        return getattr(tensor, "is_nested", False)
    return type(tensor).__name__ == "RaggedTensor"


def to_dense(tensor: Array) -> Array:
    """Return a sparse tensor as a dense one."""
    if keras.backend.backend() == "torch":
        return tensor.to_dense()
    return ops.convert_to_tensor(tensor, sparse=False)


def _is_torch(tensor: Array) -> bool:
    return keras.backend.backend() == "torch" and hasattr(tensor, "permute")
