"""Planes of loss: a quadratic whose every value is known, and a live model."""

import keras
import numpy as np
import pytest
from models import EXAMPLES

from keras_randlora import analysis

CORNERS = {
    "a": [np.array([1.0, 0.0]), np.array([[2.0]])],
    "b": [np.array([1.0, 3.0]), np.array([[2.0]])],
    "c": [np.array([1.0, 1.0]), np.array([[7.0]])],
}


def squares(weights):
    """Return the sum of squares."""
    return float(sum(np.sum(np.square(w)) for w in weights))


def test_the_plane_goes_through_the_models():
    plane = analysis.loss_plane(CORNERS, squares, resolution=5, margin=0.2)
    assert plane.names == ("a", "b", "c")
    np.testing.assert_allclose(plane.corners, [[0, 0], [3, 0], [1, 5]])
    np.testing.assert_allclose(plane.corner_losses, [5, 14, 51], rtol=1e-6)
    np.testing.assert_allclose(plane.x, np.linspace(-0.6, 3.6, 5))
    np.testing.assert_allclose(plane.y, np.linspace(-1, 6, 5))


def test_the_plane_reaches_beyond_the_models_by_default():
    plane = analysis.loss_plane(CORNERS, squares)
    np.testing.assert_allclose(plane.x, np.linspace(-0.9, 3.9, 15), atol=1e-12)
    np.testing.assert_allclose(plane.y, np.linspace(-1.5, 6.5, 15), atol=1e-12)


def test_every_point_has_its_loss():
    plane = analysis.loss_plane(CORNERS, squares, resolution=4)
    # The first axis is the second weight, the other one the third.
    by_hand = 1 + plane.x[None, :] ** 2 + (2 + plane.y[:, None]) ** 2
    np.testing.assert_allclose(plane.losses, by_hand, rtol=1e-5)


def test_the_loss_of_a_model():
    example = EXAMPLES["mlp"]
    model, inputs = example.build(), example.inputs()
    model.compile(loss=keras.losses.MeanSquaredError())
    targets = np.zeros((len(inputs), 3), "float32")
    loss = analysis.loss_of(model, inputs, targets)
    weights = [w.copy() for w in model.get_weights()]
    expected = np.mean(np.square(model.predict(inputs, verbose=0)))
    zeros = [np.zeros_like(w) for w in weights]
    assert loss(zeros) == 0.0
    assert loss(weights) == pytest.approx(expected, rel=1e-5)


def test_options_of_the_evaluation_count():
    model, inputs = EXAMPLES["mlp"].build(), EXAMPLES["mlp"].inputs()
    model.compile(loss="mse")
    size = len(inputs)
    loss = analysis.loss_of(
        model,
        inputs,
        np.zeros((size, 3), "float32"),
        sample_weight=np.eye(1, size, dtype="float32")[0],  # the first example only
        batch_size=size,
    )
    first = model.predict(inputs, verbose=0)[0]
    expected = np.mean(np.square(first)) / size
    assert loss(model.get_weights()) == pytest.approx(expected, rel=1e-5)


def test_what_spans_no_plane_is_refused():
    with pytest.raises(ValueError, match="three models. Received: 2"):
        analysis.loss_plane({k: CORNERS[k] for k in "ab"}, squares)
    with pytest.raises(ValueError, match="'c' and 'a' differ in number or shape"):
        analysis.loss_plane({**CORNERS, "c": [np.zeros(2)]}, squares)
    with pytest.raises(ValueError, match="'a' and 'b' have the same weights"):
        analysis.loss_plane({**CORNERS, "b": CORNERS["a"]}, squares)
    middle = [(a + b) / 2 for a, b in zip(CORNERS["a"], CORNERS["b"], strict=True)]
    with pytest.raises(ValueError, match="lie on one line"):
        analysis.loss_plane({**CORNERS, "c": middle}, squares)
    with pytest.raises(ValueError, match="Received: resolution=1"):
        analysis.loss_plane(CORNERS, squares, resolution=1)
    for margin in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"margin={margin}"):
            analysis.loss_plane(CORNERS, squares, margin=margin)
