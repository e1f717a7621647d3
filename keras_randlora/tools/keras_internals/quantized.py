"""Private attributes of quantized Keras layers."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import keras


def mark_as_float(layer: keras.layers.Layer) -> None:
    """Allow quantizing a layer again."""
    layer._is_quantized = False


def int4_block(layer: keras.layers.Layer) -> int | None:
    """Return the number of rows that share a scale, `None` for all."""
    block = layer._int4_block_size
    return None if block in (None, -1) else block


def int4_columns(layer: keras.layers.Layer) -> int:
    """Return the number of columns of an unpacked int4 kernel."""
    if isinstance(layer, keras.layers.EinsumDense):
        return layer._int4_unpacked_column_size
    return layer._orig_output_dim


def int4_kernel_shape(layer: keras.layers.Layer) -> tuple[int, ...]:
    """Return the shape of an int4 kernel in floating point."""
    if isinstance(layer, keras.layers.EinsumDense):
        return tuple(layer.original_kernel_shape)
    return layer._orig_input_dim, layer._orig_output_dim


def scale_for_kernel(layer: keras.layers.Layer) -> Callable[[Any], Any] | None:
    """Return the function that gives an int8 scale the kernel's axes, or `None`."""
    if not isinstance(layer, keras.layers.EinsumDense):
        return None
    # Gradients outlive layers: they must not hold a layer or its lists.
    axes = {k: list(v or ()) for k, v in vars(layer).items() if k.endswith("_axes")}
    method = type(layer)._adjust_scale_for_dequant
    return functools.partial(method, types.SimpleNamespace(**axes))


def rounded_axis(layer: keras.layers.Layer) -> Any:
    """Return the axes of a layer's input that share one scale of the rounding."""
    if isinstance(layer, keras.layers.EinsumDense):
        return layer.quantization_axis
    return -1


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
