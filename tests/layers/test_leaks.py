"""Adapters, their bases and models are freed when they are dropped."""

import gc
import weakref

import keras
import numpy as np
import pytest
from backend import BACKEND
from keras import layers

import keras_randlora as kr

X = np.ones((4, 3, 8), "float32")
OPTIONS = {
    "materialized": dict(compute="materialized"),
    "factored": dict(compute="factored"),
    "dropout": dict(compute="factored", dropout=0.5),
    "regenerated": dict(compute="materialized", basis_storage="regenerated"),
}


def plain_model(quantized=False):
    inputs = keras.Input((3, 8))
    hidden = layers.EinsumDense("btd,de->bte", (None, 6), name="up")(inputs)
    model = keras.Model(inputs, layers.Dense(8, name="down")(hidden))
    for name in ("up", "down") if quantized else ():
        model.get_layer(name).quantize("int8")
    return model


def adapted_variables(model):
    """Return weak references to λ, γ, the bases, the kernels and the bank."""
    adapted = [layer for layer in model.layers if hasattr(layer, "randlora")]
    assert len(adapted) == 2
    kept = [v for layer in adapted for v in layer.randlora.variables]
    kept += [*adapted[0].bank.variables, adapted[0].bank]
    return [weakref.ref(variable) for variable in kept]


def alive(references):
    """Return which of the references are still held by somebody."""
    gc.collect()
    return [reference() for reference in references if reference() is not None]


def train(model):
    model.compile(keras.optimizers.SGD(1e-6), "mse")
    model.fit(X, X, verbose=0)
    model.predict(X, verbose=0)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_dropped_model_is_freed_with_its_bases(options):
    model = plain_model()
    kr.enable_randlora(model, rank=2, targets="all-linear", **options)
    train(model)
    references = [weakref.ref(model), *adapted_variables(model)]
    del model
    keras.utils.clear_session()
    assert not alive(references)


def test_a_dropped_quantized_model_is_freed_with_its_bases():
    model = plain_model(quantized=True)
    kr.enable_randlora(model, rank=2, targets="all-linear")
    train(model)
    references = [weakref.ref(model), *adapted_variables(model)]
    del model
    keras.utils.clear_session()
    assert not alive(references)


def test_bases_go_with_their_adapter_while_the_model_serves():
    model, references = plain_model(), []
    for rank in (2, 3, 4):
        kr.enable_randlora(model, rank=rank, targets="all-linear")
        train(model)
        references += adapted_variables(model)
        kr.disable_randlora(model)
    model.compile("sgd", "mse")  # the former optimizer holds what it trained
    assert not alive(references)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="graphs are TensorFlow's")
def test_a_graph_goes_with_its_function_and_so_does_its_gradient():
    import tensorflow as tf
    from tensorflow.python.framework import ops

    def registered():
        gc.collect()
        return len(ops.gradient_registry.list())

    model = plain_model()
    kr.enable_randlora(model, rank=2, targets="all-linear")
    variables = [v.value for v in model.trainable_variables]
    before = registered()

    # AutoGraph warns on Python 3.13, and TensorFlow keeps what it fails to convert.
    @tf.function(autograph=False)
    def outputs(x):
        return model(x)

    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(outputs(tf.constant(X)))
    gradients = tape.gradient(loss, variables)
    assert all(gradient is not None for gradient in gradients)
    assert registered() == before + 2
    graph = weakref.ref(outputs.get_concrete_function(tf.constant(X)).graph)
    del outputs, tape, loss
    assert not alive([graph])
    assert registered() == before
