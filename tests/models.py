"""Tiny models of every kind that the package adapts, each with a batch to train on.

`EXAMPLES` maps a name to an `Example`. All of them are classifiers of three or more
classes with logits as outputs, and every layer that a test selects has a name.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import reference
from backend import as_numpy
from keras import layers, ops

import keras_randlora as kr

BATCH = 4
LENGTH = 6
VOCABULARY = 23
CLASSES = 3

LLAMA = dict(
    vocabulary_size=VOCABULARY,
    num_layers=2,
    num_query_heads=4,
    num_key_value_heads=2,
    hidden_dim=16,
    intermediate_dim=20,
)


# Plain Keras


def mlp():
    """Return a functional model with kernels 6×10, 10×5 and 5×3."""
    inputs = keras.Input((6,))
    x = layers.Dense(10, activation="tanh", name="hidden_1")(inputs)
    x = layers.Dense(5, activation="tanh", name="hidden_2")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="head")(x), name="mlp")


def sequential():
    """Return the same layers as a `Sequential`."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(10, activation="tanh", name="hidden_1"),
            layers.Dense(5, activation="tanh", name="hidden_2"),
            layers.Dense(CLASSES, name="head"),
        ],
        name="sequential",
    )


class Subclassed(keras.Model):
    """A model with a list of layers, one of them an `EinsumDense`, and dropout."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [
            layers.Dense(10, activation="tanh", name="dense_0"),
            layers.EinsumDense("ab,bcd->acd", (5, 2), bias_axes="cd", name="einsum_0"),
        ]
        self.flatten = layers.Flatten(name="flatten")
        self.dropout = layers.Dropout(0.1, name="dropout")
        self.head = layers.Dense(CLASSES, name="head")

    def call(self, inputs, training=None):
        x = inputs
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(self.flatten(x), training=training))


def unbuilt_subclassed():
    """Return a subclassed model without weights."""
    return Subclassed(name="subclassed")


def subclassed():
    """Return a subclassed model, built by a call."""
    model = unbuilt_subclassed()
    model(np.zeros((1, 6), "float32"))
    return model


def shared():
    """Return a functional model that uses its layer "twice" twice."""
    inputs = keras.Input((6,))
    twice = layers.Dense(6, activation="tanh", name="twice")
    outputs = layers.Dense(CLASSES, name="head")(twice(twice(inputs)))
    return keras.Model(inputs, outputs, name="shared")


def nested():
    """Return a functional model that holds `mlp()` as a layer; both have a "head"."""
    inputs = keras.Input((6,))
    outputs = layers.Dense(CLASSES, name="head")(mlp()(inputs))
    return keras.Model(inputs, outputs, name="nested")


def attention():
    """Return a text classifier with one `MultiHeadAttention`, named "mixer"."""
    tokens = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 8, name="embedding")(tokens)
    attended = layers.MultiHeadAttention(2, 3, name="mixer")(x, x)
    x = layers.LayerNormalization(name="norm")(x + attended)
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    outputs = layers.Dense(CLASSES, name="classifier")(x)
    return keras.Model(tokens, outputs, name="attention_classifier")


def cnn():
    """Return an image classifier with batch normalization and two dense layers."""
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, strides=2, name="conv")(images)
    x = layers.BatchNormalization(name="batch_norm")(x)
    x = layers.Flatten(name="flatten")(layers.Activation("tanh", name="tanh")(x))
    x = layers.Dense(7, activation="tanh", name="dense")(x)
    outputs = layers.Dense(CLASSES, name="head")(x)
    return keras.Model(images, outputs, name="cnn")


# keras-hub, imported only where it is used: it takes seconds


def llama3():
    """Return a Llama 3 causal language model of two blocks."""
    import keras_hub

    backbone = keras_hub.models.Llama3Backbone(**LLAMA)
    return keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)


def gemma3():
    """Return a Gemma 3 causal language model of one block."""
    import keras_hub

    sizes = {**LLAMA, "num_layers": 1, "num_key_value_heads": 1}
    backbone = keras_hub.models.Gemma3Backbone(**sizes, head_dim=6, image_size=16)
    return keras_hub.models.Gemma3CausalLM(None, backbone)


def bert():
    """Return a BERT text classifier of one block."""
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=20,
    )
    return keras_hub.models.BertTextClassifier(
        backbone, num_classes=CLASSES, preprocessor=None
    )


def vit():
    """Return a vision transformer image classifier of one block."""
    import keras_hub

    backbone = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=(8, 8),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=20,
    )
    return keras_hub.models.ViTImageClassifier(
        backbone, num_classes=CLASSES, preprocessor=None
    )


# Batches


def features(rng):
    """Return vectors of six numbers."""
    return rng.standard_normal((BATCH, 6)).astype("float32")


def tokens(rng):
    """Return token ids without the padding id 0."""
    return rng.integers(1, VOCABULARY, (BATCH, LENGTH)).astype("int32")


def text(rng):
    """Return token ids and a mask whose last row ends in padding."""
    mask = np.ones((BATCH, LENGTH), "int32")
    mask[-1, -2:] = 0
    return {"token_ids": tokens(rng), "padding_mask": mask}


def segmented_text(rng):
    """Return token ids of one segment and their mask."""
    return {**text(rng), "segment_ids": np.zeros((BATCH, LENGTH), "int32")}


def images(size):
    """Return a function that draws square images."""
    return lambda rng: rng.random((BATCH, size, size, 3), "float32")


@dataclasses.dataclass(frozen=True)
class Example:
    """A model, its data, and the layers that the tests adapt.

    Attributes:
        make: Builds the model.
        make_inputs: Draws one batch of inputs from a NumPy generator.
        targets: `targets` of `enable_randlora`; `None` for the model's own choice.
        adapted: Number of layers that this selects.
        causal: Whether there is one label for each token.
    """

    make: Callable[[], keras.Model]
    make_inputs: Callable[[np.random.Generator], Any]
    targets: str | None
    adapted: int
    causal: bool = False

    def build(self):
        """Build the model, the same each time, with no weight left constant."""
        keras.utils.set_random_seed(7)
        model = self.make()
        rng = np.random.default_rng(7)
        for weight in model.trainable_weights:
            value = ops.convert_to_numpy(weight)
            if np.ptp(value) == 0:
                weight.assign(value + 0.1 * rng.standard_normal(value.shape))
        return model

    def inputs(self):
        """Return one batch of inputs, the same each time."""
        return self.make_inputs(np.random.default_rng(11))

    def labels(self):
        """Return the labels of the batch, the same each time."""
        rng = np.random.default_rng(13)
        if self.causal:
            return rng.integers(0, VOCABULARY, (BATCH, LENGTH))
        return rng.integers(0, CLASSES, (BATCH,))

    def fit(self, model, steps=2):
        """Train on the batch; compile first where the model is not compiled."""
        if not model.compiled:
            compile_model(model)
        options = dict(batch_size=BATCH, epochs=steps, shuffle=False, verbose=0)
        return model.fit(self.inputs(), self.labels(), **options)

    def outputs(self, model):
        """Return the logits of the batch, computed eagerly."""
        return ops.convert_to_numpy(model(self.inputs(), training=False))


EXAMPLES = {
    "mlp": Example(mlp, features, "all-linear", 3),
    "sequential": Example(sequential, features, "all-linear", 3),
    "subclassed": Example(subclassed, features, "all-linear", 3),
    "shared": Example(shared, features, "all-linear", 2),
    "nested": Example(nested, features, "all-linear", 4),
    "attention": Example(attention, tokens, None, 4),
    "cnn": Example(cnn, images(8), "dense", 1),
    "llama3": Example(llama3, text, None, 4, causal=True),
    "gemma3": Example(gemma3, text, None, 2, causal=True),
    "bert": Example(bert, segmented_text, None, 2),
    "vit": Example(vit, images(16), None, 2),
}


@contextlib.contextmanager
def default_policy(policy):
    """Make a dtype policy Keras's default for a while."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def compile_model(model, learning_rate=0.05, optimizer=None, **kwargs):
    """Compile for classification, as fast to trace as the backend allows.

    The optimizer is Adam unless another one is given.
    """
    if keras.backend.backend() == "tensorflow":
        kwargs.setdefault("jit_compile", False)
    if optimizer is None:
        optimizer = keras.optimizers.Adam(learning_rate)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **kwargs,
    )


class CallCounter(layers.Layer):
    """Passes its input on and counts its calls: traces on JAX and TensorFlow."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = 0

    def call(self, inputs):
        self.calls += 1
        return inputs

    def during(self, function):
        """Return how many calls happen while `function` runs."""
        before = self.calls
        function()
        return self.calls - before


def counting():
    """Return a compiled model with kernels 6×10 and 10×3, and its `CallCounter`."""
    keras.utils.set_random_seed(7)
    inputs = keras.Input((6,))
    counter = CallCounter(name="counter")
    x = layers.Dense(10, activation="tanh", name="hidden")(counter(inputs))
    model = keras.Model(inputs, layers.Dense(CLASSES, name="head")(x), name="counting")
    compile_model(model)
    return model, counter


# Values of adapters


def random_adapter(model, scale=0.1, seed=3):
    """Return normal numbers times `scale` for every entry of the adapter."""
    rng = np.random.default_rng(seed)
    return {
        path: (scale * rng.standard_normal(array.shape)).astype("float32")
        for path, array in kr.get_adapter(model).items()
    }


def randomize(model, scale=0.1, seed=3):
    """Give a model its `random_adapter`, and return it."""
    adapter = random_adapter(model, scale, seed)
    kr.set_adapter(model, adapter)
    return adapter


def moved_adapter(model, seed):
    """Return the adapter that a model has, moved as far as training moves it."""
    rng = np.random.default_rng(seed)
    return {
        path: array + 0.05 * rng.standard_normal(array.shape).astype("float32")
        for path, array in kr.get_adapter(model).items()
    }


# What tests compare


def update_by_formula(layer):
    """Return what an adapted layer adds to its kernel, `(inputs, outputs)`, in float64.

    Only λ, γ, the bases and `alpha` are the layer's; the loops are of `reference`. Of a
    batch of kernels `(batch, inputs, outputs)`.
    """
    adapter, options = layer.randlora, layer.options
    bases = adapter.bank.bases(adapter.shape, "float32")
    factors = map(as_numpy, (adapter.lambda_, adapter.gamma, *bases))
    batched = adapter.shape.batch is not None
    formula = reference.batch_update if batched else reference.kernel_update
    return formula(
        adapter.shape.inputs,
        adapter.shape.outputs,
        reference.Factors(*factors),
        options.alpha / options.rank,
    )


def layers_of(model):
    """Return every layer of a model once, the model included."""
    found = {}
    waiting = [model]
    while waiting:
        layer = waiting.pop(0)
        if id(layer) not in found:
            found[id(layer)] = layer
            waiting += layer._layers
    return list(found.values())


def values_of(model):
    """Return the bytes of every weight, by index and path."""
    return {
        f"{index} {weight.path}": ops.convert_to_numpy(weight).tobytes()
        for index, weight in enumerate(model.weights)
    }


def structure_of(model):
    """Return what a refused call or a disabled adapter must leave, but for values.

    Class, attributes and trainable flag of every layer, path and trainable flag of
    every weight, whether the model is compiled.
    """
    return {
        "layers": [
            (layer.path, type(layer), layer.trainable, _attributes(layer))
            for layer in layers_of(model)
        ],
        "weights": [(weight.path, weight.trainable) for weight in model.weights],
        "compiled": model.compiled,
    }


def _attributes(layer):
    """Return the names of a layer's attributes; training gives a model some more."""
    return None if isinstance(layer, keras.Model) else sorted(vars(layer))
