"""The basis B as an operator: each product against the matrix it stands for."""

import numpy as np
import pytest
from backend import assert_close, evaluate

from keras_randlora.bases import kind_of
from keras_randlora.bases.operators import (
    DenseOperator,
    KroneckerOperator,
)

BLOCK = 64
SIDES = [(192, 128), (150, 70), (64, 64), (65, 64), (9, 7), (70, 150)]
every_side = pytest.mark.parametrize("rows, columns", SIDES, ids=str)


def draw(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32")


def factors_of(rows, columns):
    left = draw(-(-rows // BLOCK), -(-columns // BLOCK))
    return left, draw(BLOCK, BLOCK)


def matrix_of(rows, columns):
    """Return the leading part of the Kronecker product, entry by entry."""
    left, right = factors_of(rows, columns)
    i, k = np.arange(rows)[:, None], np.arange(columns)
    return left[i // BLOCK, k // BLOCK] * right[i % BLOCK, k % BLOCK]


def results(kind, rows, columns, method, *arrays):
    def function(*tensors):
        if kind == "dense":
            matrix, *values = tensors
            return getattr(DenseOperator(matrix), method)(*values)
        left, right, *values = tensors
        return getattr(KroneckerOperator(left, right, rows, columns), method)(*values)

    held = factors_of(rows, columns)
    held = (matrix_of(rows, columns),) if kind == "dense" else held
    return evaluate(function, *held, *arrays)


@every_side
@pytest.mark.parametrize("kind", ["dense", "kronecker"])
def test_products_are_those_of_the_matrix(kind, rows, columns):
    matrix = matrix_of(rows, columns)
    wide, tall = draw(columns, 5), draw(rows, 3)
    expanded = results(kind, rows, columns, "expand", wide)
    assert_close(expanded, matrix @ wide, 1e-5)
    transposed = results(kind, rows, columns, "expand_transposed", wide)
    assert_close(transposed, (matrix @ wide).T, 1e-5)
    assert_close(results(kind, rows, columns, "project", tall), matrix.T @ tall, 1e-5)
    projected = results(kind, rows, columns, "project_transposed", tall.T.copy())
    assert_close(projected, matrix.T @ tall, 1e-5)
    assert np.array_equal(results(kind, rows, columns, "dense"), matrix)


def test_operations_are_counted_in_multiply_adds_times_two():
    assert kind_of("uniform").operations(9, 7) == 126
    # 2 blocks of columns, 3 of rows: two products 64×64 and one 3×2 of 64 columns.
    assert kind_of("kronecker").operations(150, 70) == 2 * (2 * 64 * 64 + 3 * 2 * 64)


def test_a_kronecker_product_is_cheaper_for_common_kernels():
    ratios = [
        kind_of("kronecker").operations(*sides) / kind_of("uniform").operations(*sides)
        for sides in [(576, 576), (1536, 576), (4096, 1024), (14336, 4096)]
    ]
    expected = [73 / 576, 88 / 1536, 128 / 4096, 288 / 14336]
    np.testing.assert_allclose(ratios, expected)
