"""The update, its kernel form and its gradients against loops in float64."""

import keras
import numpy as np
import pytest
import reference
from backend import assert_close, evaluate
from keras import ops

from keras_randlora.bases.operators import DenseOperator
from keras_randlora.update.formula import (
    UpdateShape,
    adapter_gradients,
    kernel_update,
    scaled_basis_a,
)

SCALE = 1.7
TOLERANCE = 1e-6

# name -> (inputs, outputs, rank, num_bases or None for the full rank)
CASES = {
    "rows below columns, rank divides": (6, 10, 3, None),
    "rows below columns, rank does not divide": (7, 9, 3, None),
    "rows above columns, rank divides": (12, 8, 4, None),
    "rows above columns, rank does not divide": (11, 5, 2, None),
    "square, rank does not divide": (7, 7, 3, None),
    "rank 1": (5, 4, 1, None),
    "one basis, rank is the smaller side": (4, 9, 4, None),
    "one basis, rank above the smaller side": (9, 4, 6, None),
    "fewer bases than full rank takes": (12, 10, 3, 2),
    "one column": (6, 1, 1, None),
}
every_case = pytest.mark.parametrize(
    "inputs, outputs, rank, bases", CASES.values(), ids=CASES
)


def shape_and_factors(inputs, outputs, rank, bases=None):
    shape = UpdateShape.of_kernel(inputs, outputs, rank, bases)
    return shape, reference.random_factors(inputs, outputs, rank, bases)


def with_basis(factors):
    """Return the factors with B as an operator."""
    *others, basis_b = factors
    return *others, DenseOperator(basis_b)


def as_float32(arrays):
    return [array.astype("float32") for array in arrays]


@pytest.mark.parametrize(
    "kernel, expected",
    [
        # larger, smaller, num_bases, columns, transposed, trainable
        ((640, 1024, 32, None), (1024, 640, 20, 640, True, 13440)),
        ((1024, 640, 32, None), (1024, 640, 20, 640, False, 13440)),
        ((576, 576, 16, None), (576, 576, 36, 576, True, 21312)),
        ((10, 7, 3, None), (10, 7, 3, 9, False, 30)),
        ((10, 7, 3, 2), (10, 7, 2, 6, False, 20)),
        ((10, 7, 3, 50), (10, 7, 3, 9, False, 30)),
        ((4, 9, 6, None), (9, 4, 1, 6, True, 10)),
        ((1, 1, 1, None), (1, 1, 1, 1, True, 2)),
    ],
    ids=lambda value: None if len(value) > 4 else "x".join(map(str, value)),
)
def test_update_shape_counts(kernel, expected):
    shape = UpdateShape.of_kernel(*kernel)
    assert (
        shape.larger,
        shape.smaller,
        shape.num_bases,
        shape.columns,
        shape.transposed,
        shape.trainable,
    ) == expected


def test_a_larger_rank_means_fewer_trainable_parameters():
    counts = [UpdateShape.of_kernel(768, 768, r).trainable for r in (8, 32, 128)]
    assert counts == [74496, 19200, 5376]


@every_case
def test_update_is_the_papers_sum(inputs, outputs, rank, bases):
    shape, factors = shape_and_factors(inputs, outputs, rank, bases)
    kernel = evaluate(
        lambda *f: kernel_update(shape, *with_basis(f), SCALE), *as_float32(factors)
    )
    expected = reference.kernel_update(inputs, outputs, factors, SCALE)
    assert_close(kernel, expected, TOLERANCE)
    assert kernel.shape == (inputs, outputs)


@every_case
def test_scaled_basis_a_has_a_row_for_each_rank_and_base(inputs, outputs, rank, bases):
    shape, factors = shape_and_factors(inputs, outputs, rank, bases)
    lambda_, gamma, basis_a, _ = factors
    expected = [
        lambda_[k, j] * basis_a[k] * gamma[j]
        for k in range(rank)
        for j in range(shape.num_bases)
    ]
    result = evaluate(scaled_basis_a, *as_float32([lambda_, gamma, basis_a]))
    assert_close(result, expected, TOLERANCE)


def test_one_entry_of_lambda_pairs_one_column_of_b_with_one_row_of_a():
    lambda_ = np.zeros((2, 3))
    lambda_[1, 2] = 1.0  # k = 1, j = 2 of n = 3: column 1 * 3 + 2
    gamma = np.full((3, 2), 10.0)
    basis_a = np.array([[1.0, 2.0], [3.0, 4.0]])
    basis_b = np.arange(12.0).reshape(2, 6)
    factors = as_float32([lambda_, gamma, basis_a, basis_b])
    shape = UpdateShape(2, 2, rank=2, num_bases=3)
    result = evaluate(lambda *f: kernel_update(shape, *with_basis(f), 1.0), *factors)
    assert result.T.tolist() == [[5 * 30, 5 * 40], [11 * 30, 11 * 40]]


def gradients_from_update(update_gradient, lambda_, gamma, basis_a, basis_b, scale):
    """Return the gradients of λ and γ from that of the update, as a layer does."""
    projected = basis_b.project(update_gradient)
    return adapter_gradients(projected, lambda_, gamma, basis_a, scale)


@every_case
def test_gradients_from_update_are_the_slopes_of_the_reference(
    inputs, outputs, rank, bases
):
    shape, factors = shape_and_factors(inputs, outputs, rank, bases)
    upstream = np.random.default_rng(1).standard_normal((inputs, outputs))
    update_gradient = upstream.T if shape.transposed else upstream

    def loss(**changed):
        moved = factors._replace(**changed)
        delta = reference.kernel_update(inputs, outputs, moved, SCALE)
        return np.sum(upstream * delta)

    lambda_gradient, gamma_gradient = evaluate(
        lambda g, *f: gradients_from_update(g, *with_basis(f), SCALE),
        *as_float32([update_gradient, *factors]),
    )
    expected = reference.slopes(lambda value: loss(lambda_=value), factors.lambda_)
    assert_close(lambda_gradient, expected, TOLERANCE)
    expected = reference.slopes(lambda value: loss(gamma=value), factors.gamma)
    assert_close(gamma_gradient, expected, TOLERANCE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_are_float32_where_the_bases_are_not(dtype):
    _, factors = shape_and_factors(7, 9, 3)

    def gradients(lambda_, gamma, basis_a, basis_b):
        bases = ops.cast(basis_a, dtype), DenseOperator(ops.cast(basis_b, dtype))
        upstream = ops.ones((9, 7), dtype)
        return gradients_from_update(upstream, lambda_, gamma, *bases, SCALE)

    results = gradients(*map(ops.convert_to_tensor, as_float32(factors)))
    dtypes = [keras.backend.standardize_dtype(g.dtype) for g in results]
    assert dtypes == ["float32", "float32"]
