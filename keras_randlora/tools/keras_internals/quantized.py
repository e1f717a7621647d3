"""Private attributes of quantized Keras layers, in the three forms they have had.

| Keras | an int4 kernel is packed along | blocks | where it says so |
|---|---|---|---|
| 3.12, 3.13 | the first input axis | no | attributes of the layer |
| 3.14, 3.15 | the columns of a matrix | yes | other attributes |
| 3.16 | the columns of a matrix | yes | `_quantized_weight()` |

Source: `keras/src/layers/core/dense.py` and `einsum_dense.py` of these versions; of
3.16, as of 3.16.0.dev2026102704, also `geometry.py` and `modes/int4/projection.py` in
`keras/src/quantizers`.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import keras

from keras_randlora.tools.keras_internals.reliances import version_of_keras

# Attributes that hold the kernel of a quantized layer; some layers have some as `None`.
KERNEL_NAMES = ("_kernel", "kernel_scale", "kernel_zero")
_AXES = ("_kernel_squeeze_axes", "_kernel_expand_axes", "_kernel_transpose_axes")


class Packing(NamedTuple):
    """How an int4 kernel lies in its variable.

    Attributes:
        shape: Shape of the kernel in floating point.
        axis: Axis of the variable with two entries a byte.
        length: Its length when it is unpacked.
        block: Number of rows that share a scale, `None` for all.
        as_matrix: Whether the variable is a matrix, whatever axes the kernel has.
    """

    shape: tuple[int, ...]
    axis: int
    length: int
    block: int | None
    as_matrix: bool


def mark_as_float(layer: keras.layers.Layer) -> None:
    """Allow quantizing a layer again."""
    layer._is_quantized = False


def int4_packing(layer: keras.layers.Layer) -> Packing:
    """Return how a layer's int4 kernel is packed."""
    if version_of_keras() >= (3, 16):
        weight = layer._quantized_weight()
        return Packing(
            tuple(weight.shape),
            weight.layout.axis,
            weight.layout.orig_len,
            weight.scheme.group_size,
            as_matrix=True,
        )
    is_einsum = isinstance(layer, keras.layers.EinsumDense)
    if version_of_keras() >= (3, 14):
        block = None if layer._int4_block_size in (None, -1) else layer._int4_block_size
        if is_einsum:
            shape = tuple(layer.original_kernel_shape)
            columns = layer._int4_unpacked_column_size
        else:
            shape = layer._orig_input_dim, layer._orig_output_dim
            columns = layer._orig_output_dim
        return Packing(shape, -1, columns, block, as_matrix=True)
    axis = layer._int4_pack_axis if is_einsum else 0
    length = layer._orig_length_along_pack_axis if is_einsum else layer._orig_input_dim
    unpacked = list(layer._kernel.shape)
    unpacked[axis] = length
    return Packing(tuple(unpacked), axis, length, None, as_matrix=False)


def has_int4_blocks() -> bool:
    """Return whether this Keras can quantize in blocks of rows, each with a scale."""
    return version_of_keras() >= (3, 14)


def scale_for_kernel(layer: keras.layers.Layer) -> Callable[[Any], Any] | None:
    """Return the function that gives an output's scale the kernel's axes, or `None`."""
    if not isinstance(layer, keras.layers.EinsumDense):
        return None
    # Gradients outlive layers: they must not hold a layer or its lists.
    axes = {name: list(getattr(layer, name) or ()) for name in _AXES}
    method = type(layer)._adjust_scale_for_dequant
    return functools.partial(method, types.SimpleNamespace(**axes))


def rounding_of(
    layer: keras.layers.Layer,
) -> Callable[[Any], tuple[Any, Any]] | None:
    """Return the function that rounds a quantized layer's inputs, or `None`.

    Returns:
        It maps inputs to integers and their scale, and does not hold the layer.
    """
    quantizer = layer.inputs_quantizer
    if quantizer is None:
        return None
    if version_of_keras() < (3, 13):
        return quantizer  # which has its axes
    axis: Any = -1
    if version_of_keras() >= (3, 16):
        axis = layer._quantization_geometry().inputs_quantization_axis
    elif isinstance(layer, keras.layers.EinsumDense):
        axis = layer.quantization_axis
    return functools.partial(quantizer, axis=axis)


def quantize_options(layer: keras.layers.Layer) -> dict[str, Any]:
    """Return the arguments with which `quantize` repeats a layer's quantization."""
    mode = layer.quantization_mode
    if version_of_keras() < (3, 13):
        return {"mode": mode}
    if layer.quantization_config is not None:
        return {"mode": mode, "config": layer.quantization_config}
    options = {}
    if mode == "int4" and has_int4_blocks():
        options["block_size"] = int4_packing(layer).block
    kinds = {
        "int4": keras.quantizers.Int4QuantizationConfig,
        "int8": keras.quantizers.Int8QuantizationConfig,
    }
    return {"mode": mode, "config": kinds[mode](**options)}


def forget_quantize_options(layer: keras.layers.Layer) -> None:
    """Forget the arguments of the `quantize` call that a layer went through."""
    if version_of_keras() >= (3, 13):
        layer.quantization_config = None


def check_before_quantizing(check: Callable[[Any], None]) -> None:
    """Run `check(model)` before a model's `quantize` changes the first layer.

    Keras binds `quantize` to each new instance, and calls the class's
    `_check_quantize_args` when `quantize` is called.
    """
    asked = keras.Model._check_quantize_args
    if hasattr(asked, "guarded"):
        return

    @functools.wraps(asked)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> None:
        check(self)
        asked(self, *args, **kwargs)

    guarded.guarded = True  # type: ignore[attr-defined]
    keras.Model._check_quantize_args = guarded


def embeddings_variable(layer: keras.layers.Layer) -> keras.Variable:
    """Return the variable behind the property `embeddings`."""
    return layer._embeddings
