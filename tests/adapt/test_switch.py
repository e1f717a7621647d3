"""Adapters switched off: in a loss, in compiled functions, between two passes."""

import keras
import numpy as np
import pytest
from backend import BACKEND, as_numpy
from keras import layers, ops
from models import EXAMPLES, randomize

import keras_randlora as kr


class Penalised(keras.Model):
    """Adds the squared distance from the base model's outputs to the loss."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x, training=None):
        return self.inner(x, training=training)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        with kr.base_only(self.inner):
            reference = ops.stop_gradient(self.inner(x))
        return ops.mean((y_pred - y) ** 2) + ops.mean((y_pred - reference) ** 2)


def tuned(**options):
    """Return an adapted model, an input, its outputs without and with the adapter."""
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(3, name="d")])
    x = np.random.default_rng(0).standard_normal((8, 6)).astype("float32")
    base = as_numpy(inner(x))
    kr.enable_randlora(inner, rank=2, alpha=4, targets="d", **options)
    randomize(inner, seed=1)
    return inner, x, base, as_numpy(inner(x))


@pytest.mark.parametrize("eager", [False, True])
def test_within_the_loss_of_fit(eager):
    inner, x, base, outputs = tuned()
    model = Penalised(inner)
    model(x)
    model.compile(keras.optimizers.SGD(1e-3), run_eagerly=eager)
    y = np.zeros((8, 3), "float32")
    before = kr.get_adapter(inner)
    loss = model.fit(x, y, batch_size=8, verbose=0).history["loss"][0]
    expected = np.mean(outputs**2) + np.mean((outputs - base) ** 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    after = kr.get_adapter(inner)
    assert all(np.any(after[name] != before[name]) for name in before)


@pytest.mark.parametrize("first", ["outside", "inside"])
def test_compiled_functions_follow_whichever_came_first(first):
    inner, x, base, outputs = tuned()
    if first == "outside":
        np.testing.assert_array_equal(inner.predict(x, verbose=0), outputs)
    with kr.base_only(inner):
        np.testing.assert_array_equal(inner.predict(x, verbose=0), base)
    np.testing.assert_allclose(inner.predict(x, verbose=0), outputs, atol=1e-6)
    with kr.base_only(inner):
        np.testing.assert_array_equal(inner.predict(x, verbose=0), base)


@pytest.mark.parametrize("first", ["outside", "inside"])
def test_functions_that_a_user_compiled_follow(first):
    inner, x, base, outputs = tuned()
    if BACKEND == "jax":
        import jax

        trained = [v.value for v in inner.trainable_variables]
        others = [v.value for v in inner.non_trainable_variables]
        compiled = jax.jit(lambda t, o, x: inner.stateless_call(t, o, x)[0])

        def function(x):
            return compiled(trained, others, x)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        function = tf.function(inner)
    else:
        function = inner
    x = ops.convert_to_tensor(x)
    if first == "outside":
        np.testing.assert_allclose(as_numpy(function(x)), outputs, atol=1e-6)
    with kr.base_only(inner):
        np.testing.assert_allclose(as_numpy(function(x)), base, atol=1e-6)
    np.testing.assert_allclose(as_numpy(function(x)), outputs, atol=1e-6)


def test_the_kernel_that_is_read_is_the_base_kernel():
    inner, *_ = tuned()
    layer = inner.get_layer("d")
    adapted = as_numpy(layer.kernel)
    with kr.base_only(inner):
        np.testing.assert_array_equal(as_numpy(layer.kernel), as_numpy(layer._kernel))
    np.testing.assert_array_equal(as_numpy(layer.kernel), adapted)


@pytest.mark.skipif(BACKEND != "torch", reason="the order of passes is torch's to see")
def test_between_the_passes():
    inner, x, base, _ = tuned()
    outputs = inner(x)
    with kr.base_only(inner):
        reference = inner(x)
    np.testing.assert_array_equal(as_numpy(reference), base)
    ops.sum((outputs - ops.stop_gradient(reference)) ** 2).backward()
    variable = inner.get_layer("d").randlora.lambda_
    assert np.any(as_numpy(variable.value.grad))


def test_verbs_are_refused_in_the_block():
    inner, x, base, outputs = tuned()
    with kr.base_only(inner):
        for verb in (kr.get_adapter, kr.merge_randlora, kr.disable_randlora):
            with pytest.raises(ValueError, match="inside a `base_only"):
                verb(inner)
        with pytest.raises(ValueError, match="inside a `base_only"):
            with kr.base_only(inner):
                pass
        np.testing.assert_array_equal(as_numpy(inner(x)), base)
    np.testing.assert_array_equal(as_numpy(inner(x)), outputs)


def test_dropout_of_the_adapter_is_off_too():
    inner, x, base, _ = tuned(dropout=0.5)
    with kr.base_only(inner):
        np.testing.assert_allclose(as_numpy(inner(x, training=True)), base, atol=1e-6)


def test_merging_is_refused_where_a_function_is_traced():
    model = EXAMPLES["mlp"].build()
    kr.enable_randlora(model, rank=2, targets="all-linear")

    def function(x):
        with kr.merged(model):
            return model(x)

    if BACKEND == "jax":
        import jax

        function = jax.jit(function)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        function = tf.function(function)
    else:
        pytest.skip("torch runs eagerly")
    with pytest.raises(RuntimeError, match="entered while a function is traced"):
        function(EXAMPLES["mlp"].inputs())
    assert len(kr.summary(model).layers) == 3
