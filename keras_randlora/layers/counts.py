"""Parameter counts of the base model, as in floating point."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras

from keras_randlora.layers.adapter import RandLoRAAdapter
from keras_randlora.layers.quantized import kernel_shape
from keras_randlora.tools import keras_internals
from keras_randlora.update import BasisBank


def parameter_count(layers: Sequence[keras.layers.Layer]) -> int:
    """Count the layers' own parameters, each variable once.

    Quantized layers count as in floating point. λ, γ and the bases of adapted layers do
    not count.
    """
    total, seen = 0, set()
    for layer in layers:
        if isinstance(layer, (BasisBank, RandLoRAAdapter)):
            continue
        sizes = _sizes_in_float(layer)
        for variable in keras_internals.own_variables(layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                total += sizes.get(id(variable), math.prod(variable.shape))
    return total


def _sizes_in_float(layer: keras.layers.Layer) -> dict[int, int]:
    """Return the counts of a quantized layer's variables, by `id`."""
    if getattr(layer, "quantization_mode", None) not in ("int8", "int4"):
        return {}
    bias = getattr(layer, "bias", None)
    counted = {
        id(variable): 0
        for variable in keras_internals.own_variables(layer)
        if variable is not bias
    }
    if isinstance(layer, keras.layers.Embedding):
        size = layer.input_dim * layer.output_dim
        counted[id(keras_internals.embeddings_variable(layer))] = size
        if not getattr(layer, "tie_weights", True):
            counted[id(layer.reverse_embeddings)] = size
    elif isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense)):
        kernel = keras_internals.kernel_variable(layer)
        counted[id(kernel)] = math.prod(kernel_shape(layer))
    return counted
