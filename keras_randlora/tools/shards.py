"""JAX arrays that lie on several devices: read whole, copied and assigned in parts.

A copy of what this host has suffices to put an array back, and of an array in memory
each host takes the parts that are its own: neither sends anything to another host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

Array = Any
_Index = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Parts:
    """What this host has of an array that lies on several devices.

    Attributes:
        shape: Shape of the whole.
        sharding: How it lies on the devices.
        parts: A copy of each part, by its place in the whole.
    """

    shape: tuple[int, ...]
    sharding: Any
    parts: dict[_Index, np.ndarray]

    @classmethod
    def of(cls, array: Array) -> Parts:
        """Copy what this host has of an array."""
        parts: dict[_Index, np.ndarray] = {}
        for shard in array.addressable_shards:
            place = _place(shard.index, array.shape)
            if place not in parts:
                parts[place] = np.array(shard.data)
        return cls(array.shape, array.sharding, parts)

    def array(self) -> Array:
        """Return the array, on the devices where it lay."""
        import jax

        return jax.make_array_from_callback(
            self.shape,
            self.sharding,
            lambda index: self.parts[_place(index, self.shape)],
        )


def is_divided(tensor: Array) -> bool:
    """Return whether a tensor or variable lies in parts, so that no device has it."""
    array = _array_of_jax(tensor)
    return array is not None and not array.is_fully_replicated


def to_numpy(tensor: Array) -> np.ndarray:
    """Return a tensor or variable as an array, which may share its memory.

    One that lies in parts on several hosts is gathered: every process calls.
    """
    array = _array_of_jax(tensor)
    if array is not None and not array.is_fully_addressable and is_divided(array):
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(ops.convert_to_numpy(tensor))


def here(tensor: Array) -> Array:
    """Return a tensor or variable that this process computes with alone.

    Itself, but for one that lies on other hosts too, which is brought into memory.
    """
    array = _array_of_jax(tensor)
    if array is None or array.is_fully_addressable:
        return tensor
    return to_numpy(array)


@contextlib.contextmanager
def undistributed() -> Iterator[None]:
    """Make variables within the block on this process's default device.

    Under a distribution over several hosts all processes would have to make them.
    """
    former = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(former)


def corners(
    tensor: Array, shape: tuple[int, int]
) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Yield what this host has of the first rows and columns of a matrix.

    Nothing is gathered: another host yields the rest.

    Args:
        tensor: A matrix.
        shape: How many rows and columns.

    Yields:
        The place within the first rows and columns, and the entries there in float32.
    """
    array = _array_of_jax(tensor)
    if array is None or array.is_fully_addressable or array.is_fully_replicated:
        whole = tuple(slice(0, size) for size in shape)
        yield whole, to_numpy(ops.cast(tensor[whole], "float32"))
        return
    for shard in array.addressable_shards:
        (top, _), (left, _) = _place(shard.index, array.shape)
        height, width = shape[0] - top, shape[1] - left
        if height > 0 and width > 0:
            found = np.asarray(shard.data[:height, :width]).astype("float32")
            rows, columns = found.shape
            yield (slice(top, top + rows), slice(left, left + columns)), found


def copy_of(variable: keras.Variable) -> np.ndarray | Parts:
    """Return a copy in host memory for `assign`: what this host has of a variable."""
    array = _array_of_jax(variable)
    if array is not None and len(array.sharding.device_set) > 1:
        return Parts.of(array)
    return np.array(to_numpy(variable))


def assign(variable: keras.Variable, value: Array) -> None:
    """Assign a tensor, an array that each host has, or what `copy_of` returned."""
    if isinstance(value, Parts):
        value = value.array()
    elif isinstance(value, np.ndarray):
        held = _array_of_jax(variable)
        if held is not None and not held.is_fully_addressable:
            import jax

            whole = value.astype(variable.dtype, copy=False)
            value = jax.make_array_from_callback(
                held.shape, held.sharding, lambda index: whole[index]
            )
        elif value.dtype.name != variable.dtype:
            value = ops.cast(value, variable.dtype)
    variable.assign(value)


def _array_of_jax(tensor: Array) -> Array | None:
    """Return the JAX array of a tensor or variable, `None` where there is none."""
    if keras.backend.backend() != "jax":
        return None
    import jax

    value = tensor.value if isinstance(tensor, keras.Variable) else tensor
    concrete = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    return value if concrete else None


def _place(index: tuple[slice, ...], shape: tuple[int, ...]) -> _Index:
    """Return where a part begins and ends along each axis."""
    bounds = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return tuple((begin, end) for begin, end, _ in bounds)
