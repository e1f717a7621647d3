"""A new kind of layer: the convolution of one pixel, a product with a matrix.

python examples/guides/new_layer.py
"""

# --8<-- [start:layer]
import keras

import keras_randlora as kr
from keras_randlora.layers import kernel_shape
from keras_randlora.update import KernelLayout


class RandLoRAConv2D(kr.RandLoRALayer, keras.layers.Conv2D):
    """A `keras.layers.Conv2D` of one pixel with a frozen kernel and an update."""

    @staticmethod
    def layout_of(layer):
        """Return how the kernel is read as a matrix `(channels in, channels out)`."""
        moves = {layer.kernel_size, layer.strides, layer.dilation_rate}
        if moves != {(1, 1)} or layer.groups > 1:
            raise ValueError("Only convolutions of one pixel are products of matrices.")
        if layer.data_format != "channels_last":
            raise ValueError("Its channels must come last.")
        return KernelLayout(
            equation="bhwi,xyio->bhwo",  # x and y have one entry each
            kernel_shape=kernel_shape(layer),
            input_axes=(0, 1, 2),
            output_axes=(3,),
        )


kr.register_layer(keras.layers.Conv2D, RandLoRAConv2D)
# --8<-- [end:layer]

# --8<-- [start:use]
inputs = keras.Input((8, 8, 3))
x = keras.layers.Conv2D(6, 3, activation="relu", name="edges")(inputs)
x = keras.layers.Conv2D(5, 1, activation="relu", name="mix")(x)
x = keras.layers.GlobalAveragePooling2D()(x)
model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
report = kr.enable_randlora(model, rank=2, targets=["mix", "head"])
print(report)
# --8<-- [end:use]
