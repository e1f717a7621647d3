"""Kernels as matrices: every equation in use, and random ones, against `np.einsum`."""

import random
import re

import keras
import numpy as np
import pytest
import reference
from backend import BACKEND, assert_close, evaluate
from einsum_equations import BATCHED_EQUATIONS, EQUATIONS
from keras import ops

from keras_randlora.update.layouts import dense_layout, einsum_layout

# equation and shapes -> case: some differ in the bias only
CASES = {(c.equation, c.input_shape, c.output_shape): c for c in EQUATIONS}
RANDOM_EQUATIONS = 25
TOLERANCE = 1e-6


def kernel_shape_of(case):
    layer = keras.layers.EinsumDense(case.equation, case.output_shape)
    layer.build(case.input_shape)
    return tuple(layer.kernel.shape)


def entries(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def assert_layout_is_sound(equation, input_shape, kernel_shape):
    """Assert that the matrix product of the layout is NumPy's einsum."""
    layout = einsum_layout(equation, kernel_shape)
    x, kernel = entries(input_shape, 1), entries(kernel_shape, 2)
    outputs = np.einsum(equation, x, kernel)

    def everything(x, kernel, outputs):
        matrix, rows = layout.to_matrix(kernel), layout.rows(x)
        output_rows = layout.output_rows(outputs, x.ndim)
        return {
            "matrix": matrix,
            "rows": rows,
            "output_rows": output_rows,
            "kernel": layout.to_kernel(matrix),
            "x": layout.from_rows(rows, x),
            "outputs": layout.from_output_rows(output_rows, x),
        }

    results = evaluate(everything, x, kernel, outputs)
    assert np.array_equal(results["kernel"], kernel)
    assert np.array_equal(results["x"], x)
    assert np.array_equal(results["outputs"], outputs)
    assert results["matrix"].shape == (layout.inputs, layout.outputs)
    assert len(results["rows"]) == layout.tokens(input_shape)
    product = results["rows"].astype("float64") @ results["matrix"]
    assert_close(results["output_rows"], product, TOLERANCE)
    given_back = reference.to_kernel(results["matrix"], equation, kernel_shape)
    assert np.array_equal(given_back, kernel)


@pytest.mark.parametrize(
    "case", CASES.values(), ids=lambda c: f"{c.equation} {c.where}"
)
def test_every_equation_in_use_is_a_matrix_product(case):
    assert_layout_is_sound(case.equation, case.input_shape, kernel_shape_of(case))


def random_equation(seed):
    """Return an equation with its labels in random order, and shapes for it."""
    rng = random.Random(seed)
    labels = rng.sample("abcdefghijklmnopqrstuvwxyzABC", 10)
    counts = [rng.randint(0, 3), rng.randint(1, 3), rng.randint(1, 3)]
    tokens, contracted, produced = (
        [labels.pop() for _ in range(count)] for count in counts
    )
    size = {label: rng.randint(1, 4) for label in tokens + contracted + produced}
    inputs = rng.sample(tokens + contracted, counts[0] + counts[1])
    kernel = rng.sample(contracted + produced, counts[1] + counts[2])
    outputs = rng.sample(tokens + produced, counts[0] + counts[2])
    elided = [rng.randint(1, 4) for _ in range(rng.randint(0, 2))]
    left, right = rng.choice([("...", ""), ("", "..."), ("", "")])
    shape = [size[label] for label in inputs]
    input_shape = (elided if left else []) + shape + (elided if right else [])
    inputs, kernel, outputs = map("".join, (inputs, kernel, outputs))
    equation = f"{left}{inputs}{right},{kernel}->{left}{outputs}{right}"
    return equation, tuple(input_shape), tuple(size[label] for label in kernel)


@pytest.mark.parametrize("seed", range(RANDOM_EQUATIONS))
def test_random_orders_of_the_axes_are_a_matrix_product(seed):
    assert_layout_is_sound(*random_equation(seed))


@pytest.mark.parametrize(
    "equation, kernel_shape, axes",
    [
        ("btd,ndh->btnh", (4, 8, 5), ((1,), (0, 2), 8, 20)),
        ("btnh,nhd->btd", (4, 5, 8), ((0, 1), (2,), 20, 8)),
        ("abc,dc->abd", (5, 8), ((1,), (0,), 8, 5)),
        ("...d,nhd->...nh", (4, 5, 8), ((2,), (0, 1), 8, 20)),
    ],
)
def test_axes_keep_the_order_of_the_kernel(equation, kernel_shape, axes):
    layout = einsum_layout(equation, kernel_shape)
    found = layout.input_axes, layout.output_axes, layout.inputs, layout.outputs
    assert found == axes


def test_a_dense_kernel_is_its_own_matrix():
    layout = dense_layout((3, 5))
    kernel = ops.convert_to_tensor(entries((3, 5), 0))
    assert (layout.inputs, layout.outputs) == (3, 5)
    assert layout.to_kernel(layout.to_matrix(kernel)).shape == (3, 5)
    result = evaluate(layout.to_matrix, entries((3, 5), 0))
    assert np.array_equal(result, entries((3, 5), 0))


@pytest.mark.parametrize(
    "equation, input_shape, tokens",
    [
        ("btd,ndh->btnh", (2, 3, 8), 6),
        ("btd,ndh->btnh", (None, 3, 8), None),
        ("...d,ndh->...nh", (2, 3, 5, 8), 30),
        ("...d,ndh->...nh", (8,), 1),
        ("btd,tdh->bh", (7, None, None), 7),
    ],
)
def test_tokens_counts_the_rows_where_they_are_known(equation, input_shape, tokens):
    kernel_shape = (4, 8, 5)
    assert einsum_layout(equation, kernel_shape).tokens(input_shape) == tokens


def test_an_equation_is_analysed_once():
    first = einsum_layout("abc,cd->abd", (8, 7))
    assert einsum_layout("abc,cd->abd", (8, 7)) is first


@pytest.mark.skipif(BACKEND != "tensorflow", reason="sizes unknown while tracing")
def test_sizes_may_be_unknown_while_tracing():
    import tensorflow as tf

    layout = einsum_layout("btd,ndh->btnh", (4, 8, 5))

    @tf.function(input_signature=[tf.TensorSpec((None, None, 8))])
    def there_and_back(x):
        rows = layout.rows(x)
        outputs = layout.from_output_rows(rows @ tf.ones((8, 20)), x)
        return layout.from_rows(rows, x), outputs

    x = entries((2, 3, 8), 0)
    back, outputs = there_and_back(x)
    assert np.array_equal(back, x)
    assert outputs.shape == (2, 3, 4, 5)


NOT_A_PRODUCT = {
    "an axis of the kernel alone": ("ab,bcz->ac", (3, 4, 5)),
    "a summed axis of the input": ("abc,cd->ad", (3, 4)),
    "an axis of the kernel twice": ("ab,bbc->ac", (3, 3, 4)),
    "an axis of the input twice": ("aab,bc->ac", (3, 4)),
    "nothing contracted": ("ab,cd->abcd", (3, 4)),
    "a scale": ("abc,c->abc", (4,)),
}


@pytest.mark.parametrize(
    "equation, kernel_shape", NOT_A_PRODUCT.values(), ids=NOT_A_PRODUCT
)
def test_other_equations_are_refused_by_name(equation, kernel_shape):
    message = (
        f"The equation '{re.escape(equation)}' is not a product of the input's axes "
        "with a kernel that splits into input axes and output axes. Leave this layer "
        "out of `targets`."
    )
    with pytest.raises(ValueError, match=message):
        einsum_layout(equation, kernel_shape)


def test_an_axis_of_all_three_numbers_matrices():
    layout = einsum_layout("bnd,ndh->bnh", (2, 3, 4))
    assert (layout.batch, layout.inputs, layout.outputs) == (2, 3, 4)
    assert einsum_layout("bd,dh->bh", (3, 4)).batch is None


@pytest.mark.parametrize("case", BATCHED_EQUATIONS, ids=lambda c: c.where)
def test_a_batch_of_matrices_and_back(case):
    """Each matrix of the batch multiplies the inputs of its own index."""
    shape = kernel_shape_of(case)
    layout = einsum_layout(case.equation, shape)
    kernel = entries(shape, 2)
    matrices = evaluate(layout.to_matrix, kernel)
    assert matrices.shape == (layout.batch, layout.inputs, layout.outputs)
    np.testing.assert_array_equal(evaluate(layout.to_kernel, matrices), kernel)
    x = entries(case.input_shape, 1)
    outputs = np.einsum(case.equation, x, kernel)
    (axis,) = layout.batch_axes
    label = case.equation.split("->")[0].split(",")[1][axis]
    left, right = case.equation.split(",")[0], case.equation.split("->")[1]
    inputs, wanted = (
        np.moveaxis(array, labels.index(label) - len(labels), 0)
        for array, labels in ((x, left), (outputs, right))
    )
    for one, matrix, expected in zip(inputs, matrices, wanted, strict=True):
        np.testing.assert_allclose(one @ matrix, expected, rtol=1e-4, atol=1e-5)
