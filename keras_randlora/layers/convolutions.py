"""Convolutions as products with a matrix `(positions · channels in, channels out)`.

The convolution itself reads the adapted kernel. Grouped and depthwise convolutions are
not a product with one matrix and are refused.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_randlora.layers.adapted import RandLoRALayer
from keras_randlora.layers.kinds import adapted_class, is_linear, register_layer
from keras_randlora.layers.quantized import kernel_shape
from keras_randlora.update import KernelLayout


class _ReadsKernel(RandLoRALayer):
    """A layer whose own code reads the adapted kernel."""

    # Keras remembers the arguments of a layer's `call` from when it was built.
    def call(self, inputs: Any) -> Any:  # type: ignore[override]
        """Run the plain layer's call with the adapted kernel."""
        return super(RandLoRALayer, self).call(inputs)


class RandLoRAConvolution(_ReadsKernel):
    """Base class of adapted convolutions; the kernel is `(positions…, in, out)`."""

    @staticmethod
    def is_adaptable(layer: Any) -> bool:
        """Return whether each output channel depends on all input channels."""
        return layer.groups == 1

    @staticmethod
    def layout_of(layer: Any) -> KernelLayout:
        """Return how the kernel is read as a matrix.

        Raises:
            ValueError: It is a grouped convolution.
        """
        if layer.groups != 1:
            raise ValueError(
                f"It is a convolution in {layer.groups} groups, each with a kernel of "
                "its own. Leave this layer out of `targets`."
            )
        shape = kernel_shape(layer)
        outputs = len(shape) - 1
        return KernelLayout(None, shape, tuple(range(outputs)), (outputs,))


class RandLoRATransposedConvolution(_ReadsKernel):
    """Base class of adapted transposed convolutions: `(positions…, out, in)`."""

    @staticmethod
    def layout_of(layer: Any) -> KernelLayout:
        """Return how the kernel is read as a matrix."""
        shape = kernel_shape(layer)
        outputs = len(shape) - 2
        inputs = (*range(outputs), outputs + 1)
        return KernelLayout(None, shape, inputs, (outputs,))


@keras.saving.register_keras_serializable(package="keras_randlora")
class RandLoRAConv1D(RandLoRAConvolution, keras.layers.Conv1D):
    """A `keras.layers.Conv1D` with a frozen kernel and a RandLoRA update."""


@keras.saving.register_keras_serializable(package="keras_randlora")
class RandLoRAConv2D(RandLoRAConvolution, keras.layers.Conv2D):
    """A `keras.layers.Conv2D` with a frozen kernel and a RandLoRA update."""


@keras.saving.register_keras_serializable(package="keras_randlora")
class RandLoRAConv3D(RandLoRAConvolution, keras.layers.Conv3D):
    """A `keras.layers.Conv3D` with a frozen kernel and a RandLoRA update."""


@keras.saving.register_keras_serializable(package="keras_randlora")
class RandLoRAConv1DTranspose(
    RandLoRATransposedConvolution, keras.layers.Conv1DTranspose
):
    """A `keras.layers.Conv1DTranspose` with a frozen kernel and a RandLoRA update."""


@keras.saving.register_keras_serializable(package="keras_randlora")
class RandLoRAConv2DTranspose(
    RandLoRATransposedConvolution, keras.layers.Conv2DTranspose
):
    """A `keras.layers.Conv2DTranspose` with a frozen kernel and a RandLoRA update."""


@keras.saving.register_keras_serializable(package="keras_randlora")
class RandLoRAConv3DTranspose(
    RandLoRATransposedConvolution, keras.layers.Conv3DTranspose
):
    """A `keras.layers.Conv3DTranspose` with a frozen kernel and a RandLoRA update."""


register_layer(keras.layers.Conv1D, RandLoRAConv1D)
register_layer(keras.layers.Conv2D, RandLoRAConv2D)
register_layer(keras.layers.Conv3D, RandLoRAConv3D)
register_layer(keras.layers.Conv1DTranspose, RandLoRAConv1DTranspose)
register_layer(keras.layers.Conv2DTranspose, RandLoRAConv2DTranspose)
register_layer(keras.layers.Conv3DTranspose, RandLoRAConv3DTranspose)


def is_convolution(layer: keras.layers.Layer) -> bool:
    """Return whether a layer is an adapted convolution, or one that can be adapted."""
    return issubclass(_adapted_kind(layer), _ReadsKernel) and is_linear(layer)


def is_of_patches(layer: Any) -> bool:
    """Return whether a convolution is a linear layer of non-overlapping patches."""
    return (
        issubclass(_adapted_kind(layer), RandLoRAConvolution)
        and is_linear(layer)
        and tuple(layer.strides) == tuple(layer.kernel_size)
        and set(layer.dilation_rate) == {1}
    )


def is_convolution_in_groups(layer: keras.layers.Layer) -> bool:
    """Return whether a convolution is grouped or depthwise."""
    kinds = (*_BY_CHANNELS, keras.layers.Conv1D, keras.layers.Conv2D)
    return isinstance(layer, (*kinds, keras.layers.Conv3D)) and not is_linear(layer)


def _adapted_kind(layer: keras.layers.Layer) -> type[keras.layers.Layer]:
    """Return the adapted class for a layer, or its own class."""
    return adapted_class(type(layer)) or type(layer)


_BY_CHANNELS = (
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
