"""Bytes of weights and bases, also after quantization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from keras_randlora.adapt import sites
from keras_randlora.bases import kind_of
from keras_randlora.config import LayerOptions
from keras_randlora.layers import layout_of
from keras_randlora.tools import bytes_of, is_hubs_own, item_size, keras_internals
from keras_randlora.update import UpdateShape, pair_size

QUANTIZATIONS = ("int8", "int4")
INT4_BLOCK = 128


class Matrix(NamedTuple):
    """A weight that `model.quantize` stores in fewer bits.

    Attributes:
        variable: The weight.
        rows: Length of the axis along which a block shares its scale.
        packed: Length of the axis along which two int4 entries share a byte.
        zero: Bytes of the zero point of an int4 block.
    """

    variable: Any
    rows: int
    packed: int
    zero: int = 1


def weight_bytes(model: keras.Model, quantization: str | None = None) -> int:
    """Return the bytes of a plain model's weights.

    `model.quantize` stores the kernels of `Dense` and `EinsumDense` layers and the
    tables of `Embedding` and `ReversibleEmbedding` layers in fewer bits. Layers of
    other classes do not change, not even subclasses of these.

    Args:
        model: A plain model; its weights need no values.
        quantization: `None` for no change, `"int8"`, or `"int4"`, as after
            `model.quantize`: in blocks of 128, before Keras 3.14 per channel.
    """
    total = 0
    for layer in [model, *(site.layer for site in sites(model))]:
        matrices = _quantizable(layer, quantization) if quantization else []
        replaced = {id(matrix.variable) for matrix in matrices}
        own = keras_internals.own_variables(layer)
        total += sum(bytes_of(v) for v in own if id(v) not in replaced)
        total += sum(quantized_bytes(matrix, quantization) for matrix in matrices)
        if matrices and quantization == "int4" and keras_internals.has_int4_blocks():
            # The block that each row is in, once a layer, float32.
            total += 4 * matrices[0].rows
    return total


def quantized_bytes(matrix: Matrix, quantization: str | None) -> int:
    """Return the bytes of a matrix in `"int8"` or `"int4"`, with scales and zeros."""
    size = math.prod(matrix.variable.shape)
    columns = size // matrix.rows
    scale = item_size(matrix.variable.dtype)
    if quantization == "int8":
        return size + scale * columns
    numbers = size // matrix.packed * math.ceil(matrix.packed / 2)
    if not keras_internals.has_int4_blocks():
        return numbers + scale * columns
    blocks_of_rows = math.ceil(matrix.rows / INT4_BLOCK)
    return numbers + (scale + matrix.zero) * blocks_of_rows * columns


def basis_bytes(
    shapes: Sequence[UpdateShape], options: LayerOptions, dtype: str
) -> int:
    """Return the bytes of the bases that layers of these shapes share.

    Args:
        shapes: Sizes of the updates, all with the same rank.
        options: The options of the layers.
        dtype: dtype of dense bases.
    """
    if options.basis_storage != "stored":
        return 0
    kind = kind_of(options.basis)
    count = sum(map(math.prod, kind.shapes(pair_size(shapes)).values()))
    ternary = kind.distribution.dtype == "int8"
    return count * (1 if ternary else item_size(dtype))


def _quantizable(layer: keras.layers.Layer, quantization: str) -> list[Matrix]:
    """Return the matrices of a layer that `quantize` replaces."""
    if getattr(layer, "quantization_mode", None) is not None:
        return []
    if type(layer) in (keras.layers.Dense, keras.layers.EinsumDense):
        layout = layout_of(layer)
        kernel = keras_internals.kernel_variable(layer)
        packed = layout.outputs
        if not keras_internals.has_int4_blocks():
            packed = kernel.shape[layout.input_axes[0]]
        return [Matrix(kernel, layout.inputs, packed)]
    is_table = type(layer) in (keras.layers.Embedding, keras.layers.ReversibleEmbedding)
    if not is_table and not (quantization == "int8" and is_hubs_own(layer)):
        return []
    width = layer.output_dim
    matrices = [Matrix(keras_internals.embeddings_variable(layer), width, width)]
    if not getattr(layer, "tie_weights", True):
        reverse = layer.reverse_embeddings
        # Keras before 3.16 keeps the zeros of this one in the dtype of its scales.
        before = keras_internals.version_of_keras() < (3, 16)
        zero = item_size(reverse.dtype) if before else 1
        matrices.append(Matrix(reverse, width, width, zero))
    return matrices
