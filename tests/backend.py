"""Arrays of any backend: its own autodiff and compilers, and comparisons."""

import h5py
import keras
import numpy as np
from keras import ops

BACKEND = keras.backend.backend()


def evaluate(function, *arrays):
    """Return a function's results for NumPy arrays; compiled as a whole on JAX."""
    if BACKEND == "jax":
        import jax

        function = jax.jit(function)
    results = function(*map(ops.convert_to_tensor, arrays))
    return keras.tree.map_structure(as_numpy, results)


def value_and_gradients(function, *arrays, upstream=None, compiled=True):
    """Return a function's value and, by the backend's autodiff, its gradients.

    A gradient is `None` where the backend says that there is none. JAX has zeros then.

    Args:
        function: Maps as many tensors to one tensor.
        *arrays: NumPy arrays.
        upstream: Gradient of the loss with respect to the value; default all ones.
        compiled: Whether to run in `jax.jit` or `tf.function`; torch runs eagerly.
    """

    def loss_and_value(*tensors):
        value = function(*tensors)
        if upstream is None:
            return ops.sum(value), value
        return ops.sum(ops.multiply(value, upstream)), value

    value, gradients = _BACKENDS[BACKEND](loss_and_value, arrays, compiled)
    return as_numpy(value), [None if g is None else as_numpy(g) for g in gradients]


def as_numpy(tensor):
    """Return a tensor or variable as a NumPy array of its dtype."""
    return np.asarray(ops.convert_to_numpy(tensor))


def assert_close(actual, expected, tolerance):
    """Assert equal shapes and errors of at most `tolerance` times the largest entry."""
    expected = np.asarray(expected, "float64")
    actual = np.asarray(actual, "float64")
    assert actual.shape == expected.shape
    error = np.max(np.abs(actual - expected), initial=0.0)
    assert error <= tolerance * np.max(np.abs(expected), initial=0.0)


def assert_same_arrays(actual, expected, ordered=True):
    """Assert that two dictionaries hold the same names, dtypes, shapes and bits.

    The names must come in the same order unless `ordered` is false.
    """
    names = list if ordered else sorted
    assert names(actual) == names(expected)
    for name, array in expected.items():
        found = np.asarray(actual[name])
        assert (found.dtype, found.shape) == (array.dtype, array.shape), name
        assert found.tobytes() == array.tobytes(), name


def h5_arrays(path):
    """Return all arrays of an HDF5 file by name."""
    arrays = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(collect)
    return arrays


def has_no_gradient(gradient):
    """Return whether a gradient is missing or all zeros."""
    return gradient is None or not np.any(gradient)


def _jax(loss_and_value, arrays, compiled):
    import jax

    positions = tuple(range(len(arrays)))
    function = jax.value_and_grad(loss_and_value, positions, has_aux=True)
    if compiled:
        function = jax.jit(function)
    (_, value), gradients = function(*map(ops.convert_to_tensor, arrays))
    return value, gradients


def _tensorflow(loss_and_value, arrays, compiled):
    import tensorflow as tf

    def function(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            loss, value = loss_and_value(*tensors)
        return value, tape.gradient(loss, tensors)

    if compiled:
        function = tf.function(function)
    return function(*map(ops.convert_to_tensor, arrays))


def _torch(loss_and_value, arrays, compiled):
    import torch

    tensors = [ops.convert_to_tensor(a).clone().requires_grad_() for a in arrays]
    loss, value = loss_and_value(*tensors)
    gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
    return value.detach(), gradients


_BACKENDS = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
