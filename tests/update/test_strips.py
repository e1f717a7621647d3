"""The adapted kernel and its gradient strip by strip, against all at once."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from backend import BACKEND, as_numpy, assert_close, evaluate
from keras import ops
from versions import NEEDS_MESH_ON_TORCH

from keras_randlora.bases.operators import KroneckerOperator
from keras_randlora.update import UpdateShape, strips
from keras_randlora.update.formula import adapter_gradients, kernel_update

SCALE = 1.7
TOLERANCE = 1e-6
# name -> (inputs, outputs, rank)
SIDES = {
    "rows below columns": (60, 130, 4),
    "rows above columns": (130, 60, 4),
    "whole blocks": (64, 128, 8),
    "square": (66, 66, 3),
    "no equal strips": (61, 64, 4),
}
every_side = pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
every_sharing = pytest.mark.parametrize("shared", ["none", "lambda", "gamma"])


def update_of(sides, batch=None, shared="none", dtype="float32"):
    shape = replace(UpdateShape.of_kernel(*sides), batch=batch, shared=shared)
    draw = np.random.default_rng(4).standard_normal
    blocks = -(-shape.larger // 64), -(-shape.columns // 64)
    left, right = (ops.cast(draw(sizes), dtype) for sizes in (blocks, (64, 64)))
    arrays = [shape.lambda_shape, shape.gamma_shape, (shape.rank, shape.smaller)]
    return strips.Update(
        shape,
        *(ops.cast(draw(sizes), "float32") for sizes in arrays),
        KroneckerOperator(left, right, shape.larger, shape.columns),
        SCALE,
    )


def random(*shape):
    return np.random.default_rng(5).standard_normal(shape).astype("float32")


def kernel_of(update):
    shape = update.shape
    batch = () if shape.batch is None else (shape.batch,)
    return random(*batch, shape.inputs, shape.outputs)


def at_once(update):
    """Return the update and a function of its gradient, by the formula alone."""
    *factors, scale = [getattr(update, name) for name in FACTORS]
    matrix = kernel_update(update.shape, *factors, scale)

    def gradients(gradient):
        """Return those of λ and γ, by the dense B, one matrix after the other."""
        lambda_, gamma, basis_a, basis_b, _ = (getattr(update, n) for n in FACTORS)
        dense = ops.transpose(basis_b.dense())
        stacked = [
            dense @ (ops.transpose(one) if update.shape.transposed else one)
            for one in ops.unstack(ops.reshape(gradient, (-1, *gradient.shape[-2:])))
        ]
        stacked = ops.concatenate(stacked, axis=1)
        return adapter_gradients(stacked, lambda_, gamma, basis_a, scale)

    return matrix, gradients


FACTORS = ("lambda_", "gamma", "basis_a", "basis_b", "scale")


@every_side
def test_the_adapted_kernel_is_the_one_formed_at_once(sides, in_strips):
    update = update_of(sides)
    kernel = kernel_of(update)
    expected, _ = at_once(update)
    formed = evaluate(lambda k: strips.adapted_matrix(update, k), kernel)
    assert_close(formed, kernel + as_numpy(expected), TOLERANCE)
    assert_close(strips.adapted_matrix(update, None), expected, TOLERANCE)


@every_side
def test_gradients_are_those_of_the_dense_basis(sides, in_strips):
    update = update_of(sides)
    inputs, gradient = random(7, sides[0]), random(7, sides[1])
    _, gradients = at_once(update)
    expected = gradients(ops.convert_to_tensor(inputs.T @ gradient))
    for found in (
        evaluate(
            lambda x, g: strips.gradients_of_product(update, x, g), inputs, gradient
        ),
        evaluate(lambda g: strips.gradients_of_matrix(update, g), inputs.T @ gradient),
    ):
        assert_close(found[0], expected.lambda_, TOLERANCE)
        assert_close(found[1], expected.gamma, TOLERANCE)


@every_sharing
@pytest.mark.parametrize("sides", [(20, 70, 4), (70, 20, 4)], ids=["up", "down"])
def test_a_batch_is_formed_one_matrix_after_the_other(sides, shared, in_strips):
    update = update_of(sides, batch=3, shared=shared)
    kernel = kernel_of(update)
    expected, gradients = at_once(update)
    formed = evaluate(lambda k: strips.adapted_matrix(update, k), kernel)
    assert_close(formed, kernel + as_numpy(expected), TOLERANCE)
    wanted = gradients(ops.convert_to_tensor(kernel))
    found = evaluate(lambda g: strips.gradients_of_matrix(update, g), kernel)
    assert_close(found[0], wanted.lambda_, TOLERANCE)
    assert_close(found[1], wanted.gamma, TOLERANCE)


@pytest.mark.parametrize("kernel_dtype", ["float32", "bfloat16"])
def test_the_sum_is_taken_in_the_dtype_of_the_kernel(kernel_dtype, in_strips):
    update = update_of((64, 128, 8), dtype="bfloat16")
    kernel = ops.cast(kernel_of(update), kernel_dtype)
    formed = strips.adapted_matrix(update, kernel)
    expected = ops.cast(kernel + ops.cast(update.matrix(), kernel_dtype), "bfloat16")
    assert keras.backend.standardize_dtype(formed.dtype) == "bfloat16"
    assert_close(ops.cast(formed, "float32"), ops.cast(expected, "float32"), 1e-2)


@pytest.mark.parametrize(
    "sides, entries, width",
    [
        ((4096, 4096, 32), strips.STRIP_OF_UPDATE, 64),
        ((2048, 2048, 32), strips.STRIP_OF_UPDATE, 128),
        ((1152, 6912, 32), strips.STRIP_OF_UPDATE, 36),
        ((2048, 2048, 32), strips.STRIP_OF_GRADIENT, 512),
        ((1021, 2048, 32), strips.STRIP_OF_UPDATE, 1021),
    ],
)
def test_strips_are_equal_and_fit_the_cache(sides, entries, width):
    shape = UpdateShape.of_kernel(*sides)
    assert strips.width_of(shape, entries) == width
    assert shape.smaller % width == 0


def counted(update, monkeypatch):
    """Return how many products with B the adapted kernel takes."""
    calls = []

    def expand(operator, values):
        calls.append(values.shape)
        return KroneckerOperator.expand(operator, values)

    class Counting(KroneckerOperator):
        expand_transposed = KroneckerOperator.expand_transposed

    Counting.expand = expand
    basis_b = update.basis_b
    counting = Counting(basis_b.left, basis_b.right, basis_b.rows, basis_b.columns)
    counting = replace(update, basis_b=counting)
    evaluate(lambda k: strips.adapted_matrix(counting, k), kernel_of(update))
    return calls


def test_small_kernels_are_one_strip(monkeypatch):
    assert counted(update_of((130, 60, 4)), monkeypatch) == [(60, 60)]


@NEEDS_MESH_ON_TORCH
@pytest.mark.skipif(BACKEND == "tensorflow", reason="one strip there")
def test_kernels_that_a_mesh_shards_are_one_strip(monkeypatch, in_strips):
    update = update_of((130, 60, 4))
    assert counted(update, monkeypatch) != [(60, 60)]
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])
    layout_map = keras.distribution.LayoutMap(mesh)
    sharding = keras.distribution.ModelParallel(layout_map=layout_map)
    monkeypatch.setattr(keras.distribution, "distribution", lambda: sharding)
    assert counted(update, monkeypatch) == [(60, 60)]
