"""Storage of frozen kernels, in floating point or quantized.

| `quantization_mode` | stored | the kernel in floating point |
|---|---|---|
| `None` | `kernel` | `kernel` |
| `"int8"` | `kernel`, `kernel_scale` | `kernel / scale`, a scale per output |
| `"int4"` | packed `kernel`, `kernel_scale` | `kernel / scale`, a scale per output |
| `"int4"`, blocks | and `kernel_zero` | `(kernel - zero) * scale`, one per block |

Keras has blocks since 3.14, and made them its default for `"int4"`.

A layer may also round its inputs to 8 bits (Keras's default for `"int8"`); the gradient
passes the rounding unchanged (straight-through estimator), as in Keras.

Source: `keras/src/layers/core/dense.py` and `einsum_dense.py` of Keras 3.12 to 3.15,
`keras/src/quantizers/modes` of Keras 3.16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_randlora.tools import (
    Parts,
    assign,
    cast,
    copy_of,
    here,
    keras_internals,
    quick_collection,
    reshape,
    to_numpy,
    undistributed,
    with_rows,
)

Array = Any
SUPPORTED_MODES = (None, "int8", "int4")
_PER_BLOCK = keras_internals.KERNEL_NAMES
_FLOAT, _PER_OUTPUT = _PER_BLOCK[:1], _PER_BLOCK[:2]


@dataclass(frozen=True)
class FrozenKernel:
    """A kernel stored in floating point.

    Attributes:
        shape: Shape of the kernel in floating point.
        names: Names of the layer's attributes that hold it.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...] = _FLOAT

    def variables(self, layer: keras.layers.Layer) -> list[keras.Variable]:
        """Return the variables of a layer that hold its kernel."""
        _, *others = self.names
        kernel = keras_internals.kernel_variable(layer)
        return [kernel, *(getattr(layer, name) for name in others)]

    def dense(self, held: Sequence[Array], dtype: Any) -> Array:
        """Return the kernel in floating point, at least as wide as `dtype`.

        Args:
            held: The tensors of the attributes `names`.
            dtype: Dtype of the product.
        """
        return held[0]

    def seen(self, inputs: Array) -> Array:
        """Return the inputs of the product."""
        return inputs


@dataclass(frozen=True)
class QuantizedKernel(FrozenKernel):
    """A kernel stored quantized.

    Attributes:
        packing: How a kernel with two entries per byte is packed, else `None`.
        scale_for_kernel: Gives `kernel_scale` the axes of the kernel; `None` if it has
            them.
        round_inputs: Quantizes the inputs to `(integers, scale)`, or `None`.
    """

    packing: keras_internals.Packing | None = None
    scale_for_kernel: Callable[[Array], Array] | None = None
    round_inputs: Callable[[Array], tuple[Array, Array]] | None = None

    def dense(self, held: Sequence[Array], dtype: Any) -> Array:
        """Return the kernel in `dtype`, with the operations that Keras runs."""
        kernel, scale = held[:2]
        packing = self.packing
        if packing is not None:
            kernel = keras.quantizers.unpack_int4(kernel, packing.length, packing.axis)
        kernel, scale = cast(kernel, dtype), cast(scale, dtype)
        if packing is not None and packing.block is not None:
            kernel = _from_blocks(kernel, scale, cast(held[2], dtype), packing.block)
        elif self.scale_for_kernel is not None:
            kernel = kernel / self.scale_for_kernel(scale)
        else:
            kernel = kernel / scale
        return reshape(kernel, self.shape)

    def seen(self, inputs: Array) -> Array:
        """Return the inputs of the product, rounded if the layer rounds them."""
        if self.round_inputs is None:
            return inputs
        integers, scale = self.round_inputs(inputs)
        return cast(integers, keras.backend.standardize_dtype(inputs.dtype)) / scale


def kernel_shape(layer: keras.layers.Layer) -> tuple[int, ...]:
    """Return the shape of a layer's kernel in floating point."""
    if layer.quantization_mode == "int4":
        return keras_internals.int4_packing(layer).shape
    return tuple(keras_internals.kernel_variable(layer).shape)


def require_supported_mode(layer: keras.layers.Layer, path: str) -> None:
    """Check that the layer's kernel is in floating point, int8 or int4.

    Raises:
        ValueError: It is quantized in another way.
    """
    mode = layer.quantization_mode
    if mode not in SUPPORTED_MODES:
        supported = [mode for mode in SUPPORTED_MODES if mode]
        raise ValueError(
            f"Layer '{path}' is quantized as '{mode}', which RandLoRA does not adapt: "
            f"it adapts kernels in floating point or quantized as {supported}. Load "
            "the model without quantization, then call "
            f"`model.quantize('{supported[-1]}')`."
        )


def float_policy(layer: keras.layers.Layer) -> keras.DTypePolicy:
    """Return a layer's dtype policy, from before it was quantized if it was."""
    compute, variable = layer.compute_dtype, layer.variable_dtype
    return keras.DTypePolicy(compute if compute == variable else f"mixed_{compute}")


def frozen_kernel(layer: keras.layers.Layer) -> FrozenKernel:
    """Return the stored form of the kernel of a built `Dense` or `EinsumDense`."""
    shape, mode = kernel_shape(layer), layer.quantization_mode
    if mode is None:
        return FrozenKernel(shape)
    packing = keras_internals.int4_packing(layer) if mode == "int4" else None
    adjust = None
    if packing is None or not packing.as_matrix:
        adjust = keras_internals.scale_for_kernel(layer)
    return QuantizedKernel(
        shape,
        _PER_OUTPUT if packing is None or packing.block is None else _PER_BLOCK,
        packing,
        scale_for_kernel=adjust,
        round_inputs=keras_internals.rounding_of(layer),
    )


def dense_kernel(layer: keras.layers.Layer) -> Array:
    """Return a layer's frozen kernel, of shape `kernel_shape(layer)`.

    Returns:
        In float32, or in float64 if the kernel has that.
    """
    frozen = frozen_kernel(layer)
    kernel, *others = frozen.variables(layer)
    held = [kernel.value, *(variable.value for variable in others)]
    return widened(frozen.dense(held, "float32"), kernel.dtype)


def widened(tensor: Array, dtype: Any) -> Array:
    """Return a tensor in float32, or in float64 if `dtype` is that."""
    double = keras.backend.standardize_dtype(dtype) == "float64"
    return cast(tensor, "float64" if double else "float32")


def held_arrays(layer: keras.layers.Layer) -> dict[str, np.ndarray]:
    """Return copies of the arrays that store the kernel, by the layer's attribute."""
    return {name: np.array(to_numpy(v)) for name, v in _holding(layer).items()}


def kept(layer: keras.layers.Layer) -> dict[str, np.ndarray | Parts]:
    """Return copies of this host's shards of them, for `hold`."""
    return {name: copy_of(variable) for name, variable in _holding(layer).items()}


def in_use(layer: keras.layers.Layer) -> dict[str, Array]:
    """Return what they hold, for `hold`: JAX's arrays never change, others are copied.

    Where `kept` moves the arrays to the host, this takes no memory on JAX.
    """
    if keras.backend.backend() != "jax":
        return kept(layer)
    return {name: variable.value for name, variable in _holding(layer).items()}


def hold(layer: keras.layers.Layer, arrays: Mapping[str, Array]) -> None:
    """Assign what `held_arrays`, `kept` or `in_use` returned, or tensors."""
    for name, variable in _holding(layer).items():
        assign(variable, arrays[name])


def _holding(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Return the variables that hold the kernel, by the name of the attribute."""
    frozen = frozen_kernel(layer)
    return dict(zip(frozen.names, frozen.variables(layer), strict=True))


def write_kernel(layer: keras.layers.Layer, kernel: Array) -> None:
    """Assign a kernel, rounded to the layer's dtype or quantized as the layer is.

    Args:
        layer: A `Dense` or `EinsumDense`, plain or adapted.
        kernel: In floating point, of shape `kernel_shape(layer)`.
    """
    if layer.quantization_mode is None:
        variable = keras_internals.kernel_variable(layer)
        if isinstance(kernel, np.ndarray):
            assign(variable, kernel)
        else:
            variable.assign(ops.cast(kernel, variable.dtype))
    else:
        hold(layer, held_arrays(quantized_alike(layer, kernel)))


def quantized_alike(layer: keras.layers.Layer, kernel: Array) -> keras.layers.Layer:
    """Return a plain layer with `kernel`, quantized as `layer` is, with its bias.

    Args:
        layer: A quantized `Dense` or `EinsumDense`, plain or adapted.
        kernel: In floating point, of shape `kernel_shape(layer)`.
    """
    plain_class = getattr(layer, "plain_class", type(layer))
    config = plain_class.get_config(layer)
    config["dtype"] = "float32"
    config.pop("quantization_config", None)
    with undistributed():  # Keras reads the kernel whole
        twin = plain_class.from_config(config)
        twin.build_from_config(layer.get_build_config())
        keras_internals.kernel_variable(twin).assign(here(kernel))
        if layer.bias is not None:
            twin.bias.assign(here(layer.bias))
        with quick_collection():
            twin.quantize(**keras_internals.quantize_options(layer))
    return twin


def restore_float(layer: keras.layers.Layer, kernel: Array) -> None:
    """Convert a quantized plain layer to floating point.

    Args:
        layer: A quantized `Dense` or `EinsumDense`; changed in place.
        kernel: Its kernel in floating point, of shape `kernel_shape(layer)`.
    """
    shape = kernel_shape(layer)
    with keras_internals.unlocked(layer):
        with quick_collection():
            for name in (*_PER_BLOCK, "g_idx", "inputs_quantizer"):
                if hasattr(layer, name):
                    delattr(layer, name)
        keras_internals.mark_as_float(layer)
        keras_internals.forget_quantize_options(layer)
        layer.dtype_policy = float_policy(layer)
        keras_internals.add_kernel(layer, shape)
    keras_internals.kernel_variable(layer).assign(kernel)


def _from_blocks(kernel: Array, scale: Array, zero: Array, block: int) -> Array:
    """Return `(kernel - zero) * scale`, with one row of these for `block` rows.

    Args:
        kernel: Integers of shape `(rows, columns)`.
        scale: Of shape `(ceil(rows / block), columns)`.
        zero: Of the same shape.
        block: Rows of a block.
    """
    rows, columns = kernel.shape
    if missing := -rows % block:
        kernel = with_rows(kernel, missing)
    blocks = reshape(kernel, (-1, block, columns))
    values = (blocks - zero[:, None, :]) * scale[:, None, :]
    return reshape(values, (-1, columns))[:rows]
