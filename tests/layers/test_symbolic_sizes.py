"""Adapted layers where the number of tokens has no value: exporters, outer models."""

import keras
import numpy as np
import pytest
from backend import BACKEND, as_numpy, assert_close
from keras import layers, ops
from versions import NEEDS_TRACEABLE_LAYERS, since

import keras_randlora as kr

# So few tokens are factored, and so many not.
TRACED = np.ones((2, 4, 6), "float32")
X = np.random.default_rng(1).standard_normal((300, 7, 6)).astype("float32")
TOLERANCE = 1e-5
every_way = pytest.mark.parametrize("compute", ["auto", "materialized", "factored"])


def adapted_model(compute):
    """Return a model whose batch and sequence are of any size."""
    inputs = keras.Input((None, 6))
    query = layers.EinsumDense("btd,dnh->btnh", (None, 2, 5), name="query")(inputs)
    hidden = layers.Reshape((-1, 10))(query)
    model = keras.Model(inputs, layers.Dense(4, name="down")(hidden))
    kr.enable_randlora(model, rank=2, targets="all-linear", compute=compute)
    draw = np.random.default_rng(3).standard_normal
    for variable in model.trainable_variables:
        variable.assign(0.3 * draw(variable.shape))
    model(TRACED)
    return model


class Holder(layers.Layer):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, x):
        return self.model(x)


@every_way
def test_an_adapted_model_in_a_layer_of_a_new_one(compute):
    model = adapted_model(compute)
    inputs = keras.Input((None, 6))
    outer = keras.Model(inputs, Holder(model)(inputs))
    outer.compile("sgd", "mse", jit_compile=False)
    assert_close(outer.predict(X, verbose=0), as_numpy(model(X)), TOLERANCE)


@pytest.mark.skipif(BACKEND != "jax", reason="jax.export")
@every_way
def test_jax_exports_open_sizes(compute):
    import jax

    model = adapted_model(compute)
    sizes = jax.export.symbolic_shape("b, t")
    traced = jax.ShapeDtypeStruct((*sizes, 6), "float32")
    exported = jax.export.export(jax.jit(lambda x: model(x)))(traced)
    assert_close(exported.call(X), as_numpy(model(X)), TOLERANCE)


@NEEDS_TRACEABLE_LAYERS
@pytest.mark.skipif(BACKEND != "torch", reason="torch.export")
@every_way
@pytest.mark.parametrize("strict", [False, True], ids=["loose", "strict"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Dynamo detected.*dtypes.py:UserWarning")  # Keras's
@pytest.mark.filterwarnings("ignore:While compiling, we found:UserWarning")
def test_torch_exports_open_sizes(compute, strict):
    import torch

    model = adapted_model(compute)
    sizes = {0: torch.export.Dim("b", min=2), 1: torch.export.Dim("t", min=2)}
    # Keras's layers take `*args`, of which a size is told as of one argument.
    exported = torch.export.export(
        model, (torch.from_numpy(TRACED),), dynamic_shapes=((sizes,),), strict=strict
    )
    outputs = exported.module()(torch.from_numpy(X))
    assert_close(as_numpy(outputs), as_numpy(model(X)), TOLERANCE)


@since((3, 15), "`model.export` in torch's format")
@pytest.mark.skipif(BACKEND != "torch", reason="torch's format")
@every_way
def test_keras_exports_open_sizes_in_torchs_format(compute, tmp_path):
    import torch

    model = adapted_model(compute)
    dynamic = torch.export.Dim.DYNAMIC
    path = str(tmp_path / "model.pt2")
    shapes = ({0: dynamic, 1: dynamic},)
    model.export(path, format="torch", verbose=False, dynamic_shapes=shapes)
    outputs = torch.export.load(path).module()(torch.from_numpy(X))
    assert_close(as_numpy(outputs), as_numpy(model(X)), TOLERANCE)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's format")
@every_way
def test_a_saved_model_of_open_sizes_has_the_gradient(compute, tmp_path):
    import tensorflow as tf

    model = adapted_model(compute)
    path = str(tmp_path / "model")
    model.export(path, format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(path)

    def outputs_and_gradient(call):
        x = tf.constant(X)
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = call(x)
        return outputs, tape.gradient(outputs, x)

    found, wanted = map(outputs_and_gradient, (loaded.serve, model))
    for actual, expected in zip(found, wanted, strict=True):
        assert_close(as_numpy(actual), as_numpy(expected), TOLERANCE)


def test_a_product_takes_no_size_that_is_not_a_number():
    class Symbol:
        """A size that can be computed with and not compared."""

        def __mul__(self, other):
            return self

        __rmul__ = __mul__

    model = adapted_model("auto")
    adapter = model.get_layer("query").randlora
    assert adapter.product.layout.tokens((Symbol(), 4, 6)) is None
    assert adapter.product.layout.tokens((None, 4, 6)) is None
    assert adapter.product.layout.tokens((2, 4, 6)) == 8
    assert adapter.way((Symbol(), 4, 6)) == "materialized"
    assert ops.shape(model(TRACED)) == (2, 4, 4)
