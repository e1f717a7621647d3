"""Rewritten graphs of TensorFlow compute the same."""

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="of TensorFlow's graphs"
)


SLICES = {
    "one": lambda x: x[:, None],
    "two": lambda x: x[:, None, None, :, :],
    "first and last": lambda x: x[None, :, :, :, None],
    "after an ellipsis": lambda x: x[..., None, :, None],
    "around an ellipsis": lambda x: x[None, ..., None],
    "a part": lambda x: x[:, None, 1:],
    "in steps": lambda x: x[None, ::2],
    "an entry": lambda x: x[:, None, 0],
}


def run(graph, function, *arrays):
    """Return the output of a rewritten graph, that of a function before."""
    import tensorflow as tf

    inputs, outputs = (
        [tensor.name for tensor in tensors]
        for tensors in (function.inputs, function.outputs)
    )
    rewritten = tf.compat.v1.wrap_function(
        lambda: tf.import_graph_def(graph, name=""), []
    ).prune(inputs, outputs)
    (result,) = rewritten(*map(tf.constant, arrays))
    return result


@pytest.mark.parametrize("name", SLICES)
def test_new_axes(name):
    import tensorflow as tf

    from keras_randlora.export.tensorflow_rewrites import expand_dims_for_new_axes

    inner = tf.function(SLICES[name], autograph=False)
    outer = tf.function(lambda x: inner(x), autograph=False)
    function = outer.get_concrete_function(tf.TensorSpec((None, None, None), tf.int32))
    graph = function.graph.as_graph_def()
    (body,) = graph.library.function
    renamed = body.signature.name.encode()
    graph.ParseFromString(
        graph.SerializeToString().replace(renamed, renamed[:-1] + b"x")
    )
    (body,) = graph.library.function
    expand_dims_for_new_axes(body)
    # What does more than to add axes stays.
    kept = name in ("a part", "in steps", "an entry")
    assert ("StridedSlice" in {node.op for node in body.node_def}) == kept
    x = np.arange(24).reshape(2, 3, 4).astype("int32")
    actual = run(graph, function, x)
    np.testing.assert_array_equal(actual, SLICES[name](x))


def traced(inner, transposed):
    """Return the concrete function of an int8 product, and of one in a function."""
    import tensorflow as tf

    def product(x, y):
        return tf.matmul(x, y, transpose_b=transposed, output_type=tf.int32) + 1

    if inner:
        product = tf.function(product, autograph=False)
    left = tf.TensorSpec((None, 300), tf.int8, "x")
    right = tf.TensorSpec((4, 300) if transposed else (300, 4), tf.int8, "y")
    function = tf.function(lambda x, y: product(x, y), autograph=False)
    return function.get_concrete_function(left, right)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_int8_products(seed, inner, transposed):
    from keras_randlora.export.tensorflow_rewrites import multiply_int8_as_float32

    function = traced(inner, transposed)
    graph = function.graph.as_graph_def()
    # This process knows the functions of the graph by their names.
    graph.ParseFromString(graph.SerializeToString().replace(b"_product_", b"_another_"))
    assert len(graph.library.function) == inner
    for part in (graph, *graph.library.function):
        multiply_int8_as_float32(part)
    assert "BatchMatMulV3" not in str(graph)
    rng = np.random.default_rng(seed)
    x = rng.integers(-127, 128, (3, 300)).astype("int8")
    y = rng.integers(-127, 128, (300, 4)).astype("int8")
    actual = run(graph, function, x, y.T if transposed else y)
    expected = x.astype("int64") @ y.astype("int64") + 1
    assert np.abs(expected).max() > 127
    np.testing.assert_array_equal(actual, expected)
