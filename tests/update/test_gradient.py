"""A function with a hand-written gradient under the transforms of the backends."""

import gc
import weakref

import numpy as np
import pytest
from backend import BACKEND, as_numpy, assert_close, value_and_gradients
from keras import ops

from keras_randlora.update.gradient import with_gradient, with_gradient_of_kind

MARK = 7.0  # what tells the hand-written gradient from the slope
X = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.5]], "float32")
W = np.array([1.0, 3.0, -2.0], "float32")
FROZEN = np.array([2.0, 0.5, 4.0], "float32")


def forward(x, w, frozen):
    return ops.sin(x * w) * frozen


def backward(tensors, gradient):
    x, w, frozen = tensors
    outer = MARK * ops.cos(x * w) * frozen * gradient
    return outer * w, ops.sum(outer * x, axis=tuple(range(len(x.shape) - 1)))


def function():
    return with_gradient(forward, backward, trained=2)


def tensors():
    return [ops.convert_to_tensor(array) for array in (X, W, FROZEN)]


def slopes():
    """Return the slopes of the sum of all entries along x and w."""
    outer = np.cos(X * W) * FROZEN
    return outer * W, (outer * X).sum(axis=0)


def transforms():
    """Return `grad`, `vmap`, `jvp` of the backend, for functions of its tensors."""
    if BACKEND == "jax":
        import jax

        return jax.grad, jax.vmap, jax.jvp
    import torch

    return torch.func.grad, torch.func.vmap, torch.func.jvp


# torch uses what it calls deprecated itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)
functional = pytest.mark.skipif(
    BACKEND == "tensorflow", reason="TensorFlow does not transform functions"
)


@functional
def test_reverse_mode_takes_the_hand_written_gradient():
    grad, _, _ = transforms()
    gradients = grad(lambda x, w, f: function()(x, w, f).sum(), (0, 1))(*tensors())
    for actual, slope in zip(gradients, slopes(), strict=True):
        assert_close(as_numpy(actual), MARK * slope, 1e-6)


@functional
def test_forward_mode_takes_the_slope_of_the_function():
    *_, jvp = transforms()
    x, w, frozen = tensors()
    ones = ops.ones_like(x), ops.zeros_like(w), ops.zeros_like(frozen)
    outputs, tangent = jvp(function(), (x, w, frozen), ones)
    assert_close(as_numpy(outputs), np.sin(X * W) * FROZEN, 1e-6)
    assert_close(as_numpy(tangent), slopes()[0], 1e-6)


@functional
def test_a_frozen_argument_has_a_slope_in_neither_mode():
    grad, _, jvp = transforms()
    x, w, frozen = tensors()
    along = ops.zeros_like(x), ops.zeros_like(w), ops.ones_like(frozen)
    assert not np.any(as_numpy(jvp(function(), (x, w, frozen), along)[1]))
    gradient = grad(lambda frozen: function()(x, w, frozen).sum())(frozen)
    assert not np.any(as_numpy(gradient))


@functional
def test_gradients_of_samples_are_the_hand_written_ones():
    grad, vmap, _ = transforms()
    x, w, frozen = tensors()
    one = grad(lambda w, x: function()(x, w, frozen).sum())
    together = (
        vmap(one, in_dims=(None, 0)) if BACKEND == "torch" else vmap(one, (None, 0))
    )
    expected = MARK * np.cos(X * W) * FROZEN * X
    assert_close(as_numpy(together(w, x)), expected, 1e-6)


@functional
def test_second_derivatives_differentiate_the_hand_written_gradient():
    grad, _, jvp = transforms()
    x, w, frozen = tensors()

    def slope(w):
        return grad(lambda w: function()(x, w, frozen).sum())(w)

    expected = MARK * -(np.sin(X * W) * FROZEN * X**2).sum(axis=0)
    assert_close(as_numpy(grad(lambda w: slope(w).sum())(w)), expected, 1e-6)
    if BACKEND == "jax":  # torch takes the plain function where tangents are asked
        change = jvp(slope, (w,), (ops.ones_like(w),))[1]
        assert_close(as_numpy(change), expected, 1e-6)


@pytest.mark.skipif(BACKEND != "jax", reason="asks JAX what it keeps")
def test_jax_transposes_a_linearized_function_by_hand():
    import jax

    x, w, frozen = tensors()
    _, linear = jax.linearize(lambda w: function()(x, w, frozen), w)
    (gradient,) = jax.linear_transpose(linear, w)(ops.ones_like(x))
    assert_close(gradient, MARK * slopes()[1], 1e-6)
    (forward_again,) = jax.linear_transpose(
        lambda g: jax.linear_transpose(linear, w)(g)[0], x
    )(ops.ones_like(w))
    assert_close(forward_again, linear(ops.ones_like(w)), 1e-6)


class Owner:
    """Something that layers share."""


def of_kind(owner, kind, factor, calls):
    """Return `factor * x²` for a kind, which notes its calls."""

    def forward(x, frozen):
        calls.append("forward")
        return factor * x * x

    def backward(tensors, gradient):
        calls.append("backward")
        return (MARK * factor * tensors[0] * gradient,)

    return with_gradient_of_kind(owner, kind, forward, backward, trained=1)


def test_a_kind_is_traced_once():
    owner, counts = Owner(), []
    for layers in (2, 5):
        calls = []

        def product(x, frozen, layers=layers, calls=calls):
            for _ in range(layers):
                x = of_kind(owner, layers, 0.5, calls)(x, frozen)
            return x

        _, (gradient, _) = value_and_gradients(product, X, W)
        # d(x²/2)/dx is x; the hand-written one is MARK/2 times as large
        expected = np.ones_like(X)
        x = X.astype("float64")
        for _ in range(layers):
            expected, x = expected * MARK * 0.5 * x, 0.5 * x * x
        assert_close(gradient, expected, 1e-5)
        counts.append((calls.count("forward"), calls.count("backward")))
    few, many = counts
    assert (few == many) == (BACKEND != "torch")


def test_kinds_and_owners_do_not_mix():
    owners, calls = (Owner(), Owner()), []
    factors = [(0, "one", 2.0), (0, "other", 3.0), (1, "one", 5.0), (0, "one", 2.0)]
    for place, kind, factor in factors:
        product = of_kind(owners[place], kind, factor, calls)
        assert_close(as_numpy(product(*tensors()[:2])), factor * X**2, 1e-6)


def test_functions_go_with_their_owner():
    class Kept:
        """A part of what the functions need."""

    def product_of(owner):
        kept = Kept()
        with_gradient_of_kind(
            owner, "kind", lambda x: (kept, x)[1], lambda tensors, g: (g,), trained=1
        )
        return weakref.ref(kept)

    owner = Owner()
    kept = product_of(owner)
    gc.collect()
    assert (kept() is None) == (BACKEND == "torch")
    del owner
    gc.collect()
    assert kept() is None
