"""Sparse and ragged inputs of adapted layers (bags of words)."""

import keras
import numpy as np
import pytest
from backend import BACKEND, as_numpy
from keras import layers
from models import randomize
from versions import since

import keras_randlora as kr
from keras_randlora.tools import is_sparse, to_dense

WORDS = 12
COUNTS = np.random.default_rng(0).poisson(0.4, (8, WORDS)).astype("float32")
LABELS = np.arange(8) % 3


def sparse(array):
    """Return an array as the backend's sparse tensor."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.sparse.from_dense(array)
    if BACKEND == "jax":
        from jax.experimental import sparse as jax_sparse

        return jax_sparse.BCOO.fromdense(array)
    return keras.ops.convert_to_tensor(array).to_sparse()


def classifier(**options):
    """Return an adapted classifier of bags of words."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((WORDS,), sparse=BACKEND != "torch")
    hidden = layers.Dense(8, activation="tanh", name="hidden")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="head")(hidden))
    if quantize := options.pop("quantize", None):
        model.get_layer("hidden").quantize(quantize)
    kr.enable_randlora(model, rank=2, targets="all-linear", **options)
    randomize(model)
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def test_a_sparse_tensor_is_told_from_a_dense_one():
    assert is_sparse(sparse(COUNTS))
    assert not is_sparse(keras.ops.convert_to_tensor(COUNTS))
    np.testing.assert_array_equal(as_numpy(to_dense(sparse(COUNTS))), COUNTS)


@pytest.mark.parametrize(
    "options",
    [
        dict(compute="materialized"),
        dict(compute="factored"),
        dict(basis="sparse"),
        dict(quantize="int8"),
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_a_step_is_that_of_the_dense_inputs(options):
    found = {}
    for name, inputs in (("sparse", sparse(COUNTS)), ("dense", COUNTS)):
        model = classifier(**options)
        outputs = model(inputs)
        with kr.base_only(model):
            base = model(inputs)
        loss = model.train_on_batch(inputs, LABELS)
        found[name] = [as_numpy(outputs), as_numpy(base), loss, kr.get_adapter(model)]
        assert np.abs(found[name][0] - found[name][1]).max() > 0.01
    for ours, theirs in zip(found["sparse"][:3], found["dense"][:3], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for key, array in found["dense"][3].items():
        np.testing.assert_allclose(found["sparse"][3][key], array, atol=1e-5)


def test_dropout_takes_sparse_inputs():
    model = classifier(dropout=0.5)
    before = kr.get_adapter(model)
    model.train_on_batch(sparse(COUNTS), LABELS)
    after = kr.get_adapter(model)
    assert all(np.any(before[key] != array) for key, array in after.items())


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no sparse `fit` on torch")
def test_fit_takes_sparse_data():
    found = []
    for inputs in (sparse(COUNTS), COUNTS):
        model = classifier()
        model.fit(inputs, LABELS, batch_size=4, epochs=2, shuffle=False, verbose=0)
        found.append(kr.get_adapter(model))
    for key, array in found[1].items():
        np.testing.assert_allclose(found[0][key], array, atol=1e-5)


def test_a_merged_model_takes_them_too():
    model = classifier()
    outputs = as_numpy(model(sparse(COUNTS)))
    kr.merge_randlora(model)
    np.testing.assert_allclose(as_numpy(model(sparse(COUNTS))), outputs, atol=1e-5)


def test_an_einsum_takes_them_dense():
    """Keras's own refuses sparse tensors."""
    model = keras.Sequential(
        [keras.Input((WORDS,)), layers.EinsumDense("ab,bc->ac", 5, name="e")]
    )
    kr.enable_randlora(model, rank=2, targets="e")
    randomize(model)
    layer = model.get_layer("e")
    dense = as_numpy(layer(COUNTS))
    np.testing.assert_allclose(as_numpy(layer(sparse(COUNTS))), dense, atol=1e-5)


@since((3, 14), "Asking a nested tensor of PyTorch for its shape", "torch")
@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no ragged tensors")
def test_ragged_inputs_are_refused_by_name():
    model = keras.Sequential([keras.Input((None, 4)), layers.Dense(3, name="d")])
    kr.enable_randlora(model, rank=2, targets="d")
    rows = [np.ones((2, 4), "float32"), np.ones((1, 4), "float32")]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        ragged = tf.ragged.stack([tf.constant(row) for row in rows])
    else:
        import torch

        ragged = torch.nested.nested_tensor(
            [torch.tensor(row) for row in rows], layout=torch.jagged
        )
    with pytest.raises(ValueError, match="Layer '.*d' takes no ragged tensor"):
        model.get_layer("d")(ragged)
