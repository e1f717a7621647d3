"""A new kind of layer: scores for words, from a matrix with one row per word.

python examples/guides/new_layer.py
"""

# --8<-- [start:layer]
import keras

import keras_randlora as kr
from keras_randlora.layers import kernel_shape
from keras_randlora.update import KernelLayout


@keras.saving.register_keras_serializable("guides")
class Scores(keras.layers.Layer):
    """The product with a matrix `(words, width)`, transposed."""

    bias = activation = None

    def __init__(self, words, **kwargs):
        super().__init__(**kwargs)
        self.words = words

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel", shape=(self.words, input_shape[-1])
        )

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.kernel))

    def get_config(self):
        return {**super().get_config(), "words": self.words}


class RandLoRAScores(kr.RandLoRALayer, Scores):
    """`Scores` with a frozen matrix and an update."""

    @staticmethod
    def layout_of(layer):
        """Return how the kernel is read as a matrix `(width, words)`."""
        return KernelLayout(
            equation="...i,oi->...o",
            kernel_shape=kernel_shape(layer),
            input_axes=(1,),
            output_axes=(0,),
        )


kr.register_layer(Scores, RandLoRAScores)
# --8<-- [end:layer]

# --8<-- [start:use]
inputs = keras.Input((7,))
x = keras.layers.Dense(5, activation="relu", name="hidden")(inputs)
model = keras.Model(inputs, Scores(9, name="scores")(x))
report = kr.enable_randlora(model, rank=2, targets="all-linear")
print(report)
# --8<-- [end:use]
