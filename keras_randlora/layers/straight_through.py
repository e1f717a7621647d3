"""Straight-through estimator for the inputs of quantized `ReversibleEmbedding` layers.

Keras rounds the inputs of a tied output embedding to 8 bits: in every `"int8"`
model, and in `"int4"` models loaded from a preset. `Dense` and `EinsumDense` have their
own gradient for this rounding. Here only the largest entry of each token would get a
gradient, and the model would hardly learn.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_randlora.tools import is_reversible

Array = Any


class StraightThrough:
    """A quantizer of inputs with the identity as its gradient.

    Args:
        quantizer: The layer's own, which returns integers and their scale.
    """

    def __init__(self, quantizer: Any) -> None:
        self.quantizer = quantizer

    def __call__(self, inputs: Array, **options: Any) -> tuple[Array, Array]:
        """Return the same integers in the inputs' dtype, and the same scale."""
        integers, scale = self.quantizer(inputs, **options)
        scale = ops.stop_gradient(scale)
        scaled = inputs * scale
        integers = ops.cast(ops.stop_gradient(integers), inputs.dtype)
        return scaled + ops.stop_gradient(integers - scaled), scale


def pass_gradients(layer: keras.layers.Layer) -> None:
    """Add the straight-through estimator to a layer that rounds its inputs."""
    quantizer = _quantizer(layer)
    rounds = quantizer is not None and not isinstance(quantizer, StraightThrough)
    if rounds and is_reversible(layer):
        layer.inputs_quantizer = StraightThrough(quantizer)


def restore_rounding(layer: keras.layers.Layer) -> None:
    """Undo `pass_gradients`."""
    if isinstance(_quantizer(layer), StraightThrough):
        layer.inputs_quantizer = layer.inputs_quantizer.quantizer


def _quantizer(layer: keras.layers.Layer) -> Any:
    return getattr(layer, "inputs_quantizer", None)
