"""Likeness of activations: CKA by its definition, and layers seen in live models."""

import keras
import numpy as np
import pytest
from backend import assert_close
from keras import ops
from models import EXAMPLES

import keras_randlora as kr
from keras_randlora import analysis

LAYERS = ["hidden_1", "hidden_2", "head"]


def by_definition(x, y):
    """Return HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) from the Gram matrices."""
    n = len(x)
    center = np.eye(n) - np.full((n, n), 1 / n)

    def hsic(k, other):
        return np.trace(k @ center @ other @ center)

    k, other = x @ x.T, y @ y.T
    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


def test_cka_is_that_of_the_gram_matrices():
    draw = np.random.default_rng(0).normal
    x, y = draw(2.0, size=(9, 4)), draw(size=(9, 6))
    assert analysis.cka(x, y) == pytest.approx(by_definition(x, y))
    y[:, :4] += x
    assert analysis.cka(x, y) == pytest.approx(by_definition(x, y))


def test_cka_does_not_see_rotation_scale_and_shift():
    draw = np.random.default_rng(0).normal
    x = draw(size=(30, 5))
    rotation, _ = np.linalg.qr(draw(size=(5, 5)))
    assert analysis.cka(x, 3 * x @ rotation + 7) == pytest.approx(1)
    assert analysis.cka(x, draw(size=(30, 5))) < 0.6


def test_outputs_are_those_of_the_layers():
    example = EXAMPLES["mlp"]
    model = example.build()
    inputs = example.inputs()
    seen = analysis.layer_outputs(model, inputs, LAYERS)
    first = model.get_layer("hidden_1")
    kernel, bias = (ops.convert_to_numpy(w) for w in first.weights)
    np.testing.assert_allclose(
        seen["hidden_1"], np.tanh(inputs @ kernel + bias), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        seen["head"], ops.convert_to_numpy(model(inputs)), rtol=1e-4, atol=1e-5
    )
    assert "call" not in vars(first)


def test_outputs_of_quantized_layers_are_seen():
    model, inputs = EXAMPLES["mlp"].build(), EXAMPLES["mlp"].inputs()
    expected = analysis.layer_outputs(model, inputs, LAYERS)
    layer = model.get_layer("hidden_1")
    layer.quantize("int8")
    seen = analysis.layer_outputs(model, inputs, LAYERS)
    for path in LAYERS:
        assert_close(seen[path], expected[path], 0.05)
    kr.enable_randlora(model, 2, "hidden_1")
    adapted = analysis.layer_outputs(model, inputs, LAYERS)
    for path in LAYERS:
        assert_close(adapted[path], seen[path], 1e-5)
    assert "quantized_call" not in vars(layer)


class Pair(keras.layers.Layer):
    """Returns its input plus one, and its input."""

    def call(self, inputs):
        return inputs + 1.0, inputs


def test_the_first_of_several_outputs_counts():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, Pair(name="pair")(inputs)[0])
    x = np.arange(6, dtype="float32").reshape(2, 3)
    seen = analysis.layer_outputs(model, x, ["pair"])
    np.testing.assert_array_equal(seen["pair"], x + 1)


def test_a_layer_that_is_called_twice_is_refused():
    model = EXAMPLES["shared"].build()
    message = "'twice' must be called once by model 'shared'. It was called 2 times."
    with pytest.raises(ValueError, match=message):
        analysis.layer_outputs(model, EXAMPLES["shared"].inputs(), ["twice"])
    assert "call" not in vars(model.get_layer("twice"))


def test_only_tokens_of_the_mask_count():
    array = np.arange(24, dtype="float32").reshape(2, 3, 4)
    mask = np.array([[1, 1, 0], [1, 0, 0]])

    model = keras.Sequential([keras.Input((3, 4)), keras.layers.Dense(5, name="d")])
    every = analysis.layer_outputs(model, array, ["d"])["d"]
    counted = analysis.layer_outputs(model, array, ["d"], mask)["d"]
    np.testing.assert_array_equal(counted, every.reshape(2, 3, 5)[[0, 0, 1], [0, 1, 0]])
    with pytest.raises(ValueError, match="'d', of shape .* not begin as `mask`"):
        analysis.layer_outputs(model, array, ["d"], np.ones((3, 3)))


def test_models_become_less_alike_layer_by_layer():
    example = EXAMPLES["mlp"]
    first, second = example.build(), example.build()
    second.set_weights(first.get_weights())
    kr.enable_randlora(second, 2, ["hidden_1", "hidden_2"])
    inputs = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
    same = analysis.layer_cka(first, second, inputs, LAYERS)
    assert same == pytest.approx(dict.fromkeys(LAYERS, 1.0))
    adapter = kr.get_adapter(second)
    adapter["hidden_2/lambda"] += 1.0
    kr.set_adapter(second, adapter)
    other = analysis.layer_cka(first, second, inputs, LAYERS)
    assert other["hidden_1"] == pytest.approx(1.0)
    assert other["hidden_2"] < 0.999


def test_what_cannot_be_compared_is_refused():
    model = EXAMPLES["mlp"].build()
    with pytest.raises(ValueError, match="Received: 3 and 4 examples"):
        analysis.cka(np.eye(3), np.eye(4))
    with pytest.raises(ValueError, match="the same for all examples"):
        analysis.cka(np.ones((5, 2)), np.ones((5, 2)))
    with pytest.raises(ValueError, match="'mlp' has no layer 'hiden'"):
        analysis.layer_outputs(model, np.ones((4, 6)), ["hiden"])
