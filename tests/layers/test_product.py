"""The adapted product and its hand-written gradient against plain autodiff."""

import functools

import keras
import numpy as np
import pytest
import reference
from backend import (
    BACKEND,
    as_numpy,
    assert_close,
    evaluate,
    has_no_gradient,
    value_and_gradients,
)
from keras import ops

from keras_randlora.bases import BasisSpec, resolve_sparsity
from keras_randlora.layers import RandLoRADense
from keras_randlora.layers.product import AdaptedProduct
from keras_randlora.layers.quantized import FrozenKernel
from keras_randlora.update.bank import BasisBank
from keras_randlora.update.formula import UpdateShape
from keras_randlora.update.gradient import with_gradient
from keras_randlora.update.layouts import (
    DENSE_EQUATION,
    dense_layout,
    einsum_layout,
    read_layout,
)

SCALE = 1.5
TOLERANCE = 1e-5

# name -> (equation, input shape, kernel shape, rank, basis)
CASES = {
    "dense, inputs below outputs": (DENSE_EQUATION, (4, 5), (5, 8), 2, "uniform"),
    "dense, inputs above outputs": (DENSE_EQUATION, (2, 3, 8), (8, 5), 2, "sparse"),
    "dense, square": (DENSE_EQUATION, (3, 7), (7, 7), 3, "normal"),
    "query": ("btd,ndh->btnh", (2, 3, 5), (2, 5, 4), 2, "uniform"),
    "attention output": ("btnh,nhd->btd", (2, 3, 2, 4), (2, 4, 5), 3, "binary"),
    "tokens behind": ("adt,ed->aet", (2, 5, 3), (4, 5), 2, "uniform"),
    "kronecker": (DENSE_EQUATION, (3, 150), (150, 70), 4, "kronecker"),
    "kronecker, transposed": ("btd,ndh->btnh", (2, 2, 66), (2, 66, 65), 3, "kronecker"),
    "kronecker below a block": (DENSE_EQUATION, (3, 9), (9, 7), 2, "kronecker"),
    "very many zeros": (DENSE_EQUATION, (3, 40), (40, 25), 4, "ternary"),
    "very many zeros, transposed": (DENSE_EQUATION, (3, 25), (25, 40), 4, "ternary"),
    "axes in disorder": ("cabe,dbc->eda", (3, 2, 5, 4), (6, 5, 3), 4, "uniform"),
}
every_case = pytest.mark.parametrize("case", CASES)
every_way = pytest.mark.parametrize("way", ["materialized", "factored"])


def product_of(case, storage="stored"):
    equation, _, kernel_shape, rank, basis = CASES[case]
    layout = einsum_layout(equation, kernel_shape)
    shape = UpdateShape.of_kernel(layout.inputs, layout.outputs, rank)
    sparsity = 50 if basis == "ternary" else None
    spec = BasisSpec(basis, resolve_sparsity(basis, sparsity, shape.larger), seed=5)
    bank = BasisBank.for_shapes([shape], spec, storage=storage)
    return AdaptedProduct(layout, FrozenKernel(kernel_shape), shape, bank, SCALE)


def arrays_of(case, product):
    """Return the input, the kernel, λ and γ as float32 arrays."""
    _, input_shape, kernel_shape, rank, _ = CASES[case]
    bases, smaller = product.shape.num_bases, product.shape.smaller
    draw = np.random.default_rng(2).standard_normal
    shapes = [input_shape, kernel_shape, (rank, bases), (bases, smaller)]
    return [draw(shape).astype("float32") for shape in shapes]


def reference_update(case, product, lambda_, gamma):
    """Return the update of the kernel by the loops of the reference."""
    equation, _, kernel_shape, _, _ = CASES[case]
    shape = product.shape
    bases = [as_numpy(basis) for basis in product.bank.bases(shape, "float32")]
    factors = reference.Factors(lambda_, gamma, *bases)
    delta = reference.kernel_update(shape.inputs, shape.outputs, factors, SCALE)
    return reference.to_kernel(delta, equation, kernel_shape)


def plain(case, product, x, kernel, lambda_, gamma):
    """Return `x · (kernel + update)` from einsums that the backend differentiates."""
    equation, _, kernel_shape, rank, _ = CASES[case]
    shape = product.shape
    basis_a, basis_b = product.bank.bases(shape, "float32")
    basis_b = ops.reshape(basis_b, (shape.larger, rank, shape.num_bases))
    matrix = ops.einsum("lkj,kj,ks,js->ls", basis_b, lambda_, basis_a, gamma)
    if shape.inputs <= shape.outputs:
        matrix = ops.transpose(matrix)
    count = shape.inputs * shape.outputs
    order = reference.to_kernel(np.arange(count), equation, kernel_shape)
    entries = ops.take(ops.reshape(matrix, (count,)), order.reshape(-1))
    delta = SCALE * ops.reshape(entries, kernel_shape)
    return ops.einsum(equation, x, kernel + delta)


def adapted(way, product, x, kernel, lambda_, gamma):
    """Return `x · (kernel + update)` in the way asked for."""
    if way == "materialized":
        return product.materialized(x, [kernel], lambda_, gamma)
    return product.layout.apply(x, kernel) + product.factored(x, lambda_, gamma)


@functools.cache
def upstream_of(case):
    """Return a fixed gradient of the loss with respect to the output."""
    equation, input_shape, kernel_shape, _, _ = CASES[case]
    shape = np.einsum(equation, np.ones(input_shape), np.ones(kernel_shape)).shape
    return np.random.default_rng(3).standard_normal(shape).astype("float32")


@functools.cache
def expected(case):
    """Return the output and the gradients of x, W, λ, γ by plain autodiff."""
    product = product_of(case)
    return value_and_gradients(
        functools.partial(plain, case, product),
        *arrays_of(case, product),
        upstream=upstream_of(case),
    )


def assert_as_expected(case, way, product, compiled=True):
    outputs, (x, _, lambda_, gamma) = value_and_gradients(
        functools.partial(adapted, way, product),
        *arrays_of(case, product),
        upstream=upstream_of(case),
        compiled=compiled,
    )
    expected_outputs, gradients = expected(case)
    assert_close(outputs, expected_outputs, TOLERANCE)
    assert_close(x, gradients[0], TOLERANCE)
    assert_close(lambda_, gradients[2], TOLERANCE)
    assert_close(gamma, gradients[3], TOLERANCE)


@every_case
@every_way
def test_output_and_gradients_are_those_of_plain_autodiff(case, way):
    assert_as_expected(case, way, product_of(case))


@pytest.mark.parametrize("case", [case for case in CASES if "kronecker" in case])
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_strips_give_the_same_output_and_gradients(case, compiled, in_strips):
    product = product_of(case)
    assert_as_expected(case, "materialized", product, compiled)
    *_, lambda_, gamma = arrays_of(case, product)
    update = evaluate(lambda *f: product.update(*f, "float32"), lambda_, gamma)
    assert_close(update, reference_update(case, product, lambda_, gamma), 1e-6)


@every_way
def test_the_gradient_is_the_same_outside_a_compiler(way):
    assert_as_expected("query", way, product_of("query"), compiled=False)


@every_way
@pytest.mark.parametrize("case", ["query", "attention output", "kronecker"])
def test_regenerated_bases_give_the_same_gradients(case, way):
    assert_as_expected(case, way, product_of(case, storage="regenerated"))


@every_way
@pytest.mark.parametrize("case", ["query", "dense, inputs above outputs"])
def test_the_gradient_is_the_slope_of_the_papers_formula(case, way):
    product = product_of(case)
    arrays = arrays_of(case, product)
    exact = [array.astype("float64") for array in arrays]

    def outputs_of(x, kernel, lambda_, gamma):
        delta = reference_update(case, product, lambda_, gamma)
        return np.einsum(CASES[case][0], x, kernel + delta)

    outputs, gradients = value_and_gradients(
        functools.partial(adapted, way, product), *arrays, upstream=upstream_of(case)
    )
    assert_close(outputs, outputs_of(*exact), TOLERANCE)
    for position in (0, 2, 3):

        def loss(array, position=position):
            moved = [*exact[:position], array, *exact[position + 1 :]]
            return np.sum(upstream_of(case) * outputs_of(*moved))

        slopes = reference.slopes(loss, exact[position])
        assert_close(gradients[position], slopes, TOLERANCE)


@every_case
def test_update_is_the_reference_in_the_shape_of_the_kernel(case):
    product = product_of(case)
    *_, lambda_, gamma = arrays_of(case, product)
    result = evaluate(lambda *f: product.update(*f, "float32"), lambda_, gamma)
    assert_close(result, reference_update(case, product, lambda_, gamma), 1e-6)


@every_way
def test_the_update_brings_no_gradient_to_the_frozen_kernel(way):
    product = product_of("query")
    x, kernel, lambda_, gamma = arrays_of("query", product)

    def function(kernel, lambda_):
        fixed = ops.convert_to_tensor(x), ops.convert_to_tensor(gamma)
        if way == "factored":
            return product.factored(fixed[0], lambda_, fixed[1])
        return product.materialized(fixed[0], [kernel], lambda_, fixed[1])

    _, gradients = value_and_gradients(function, kernel, lambda_)
    assert has_no_gradient(gradients[0])
    assert not has_no_gradient(gradients[1])


@every_way
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_inputs_leave_the_adapters_gradients_in_float32(way, dtype):
    product = product_of("query")
    dtypes = []

    def function(x, kernel, *adapter):
        half = ops.cast(x, dtype), ops.cast(kernel, dtype)
        outputs = adapted(way, product, *half, *adapter)
        dtypes.append(keras.backend.standardize_dtype(outputs.dtype))
        return outputs

    outputs, (x, _, lambda_, gamma) = value_and_gradients(
        function, *arrays_of("query", product), upstream=upstream_of("query")
    )
    expected_outputs, gradients = expected("query")
    assert dtypes[0] == dtype
    assert lambda_.dtype == gamma.dtype == np.float32
    for actual, exact in (
        (outputs, expected_outputs),
        (x, gradients[0]),
        (lambda_, gradients[2]),
        (gamma, gradients[3]),
    ):
        assert_close(actual, exact, 0.03)


# name -> (kernel matrix, num_bases, tokens, dropout, the cheaper way)
#
# A kernel 80×50 of rank 2 with 25 bases: the materialized update costs 2,800,000 and
# 8,000 a token (24,000 with dropout), the factored one 94,000 a token; with the passes
# through memory that `ENTRY_OF_UPDATE` and `ENTRY_OF_TOKENS` stand for.
WAYS = {
    "few tokens": ((80, 50), None, 32, False, "factored"),
    "more tokens": ((80, 50), None, 33, False, "materialized"),
    "the transpose": ((50, 80), None, 32, False, "factored"),
    "dropout, few tokens": ((80, 50), None, 39, True, "factored"),
    "dropout, more tokens": ((80, 50), None, 40, True, "materialized"),
    "one base, few tokens": ((80, 50), 1, 41, False, "factored"),
    "one base, more tokens": ((80, 50), 1, 42, False, "materialized"),
    "unknown tokens": ((80, 50), None, None, False, "materialized"),
    "unknown tokens, dropout": ((80, 50), None, None, True, "materialized"),
}


def bare_product(inputs, outputs, num_bases=None, basis="uniform"):
    shape = UpdateShape.of_kernel(inputs, outputs, 2, num_bases)
    bank = BasisBank.for_shapes([shape], BasisSpec(basis, None, seed=5))
    layout = dense_layout((inputs, outputs))
    return AdaptedProduct(layout, None, shape, bank, SCALE)


@pytest.mark.parametrize("sides, bases, tokens, dropout, way", WAYS.values(), ids=WAYS)
def test_auto_takes_the_cheaper_way(sides, bases, tokens, dropout, way):
    product = bare_product(*sides, bases)
    assert product.way("auto", tokens, dropout) == way


@every_way
def test_a_chosen_way_is_kept(way):
    product = bare_product(8, 5)
    for tokens in (1, 10_000, None):
        assert product.way(way, tokens) == way


def test_operations_are_counted_in_multiply_adds_times_two():
    product = bare_product(8, 5)
    assert product.materialized_operations(10) == 1440 + 800
    assert product.materialized_operations(10, dropout=True) == 1440 + 2400
    assert product.factored_operations(10) == 3720


def test_operations_of_a_kronecker_basis():
    # 192 = 3 blocks and 100 columns = 2 blocks of 64: 2·2·64·64 and 2·3·2·64 a column.
    product = bare_product(192, 100, basis="kronecker")
    column = 16_384 + 768
    assert product.materialized_operations(10) == 3 * 100 * column + 2 * 10 * 19_200
    assert product.factored_operations(10) == 10 * (2 * column + 6 * 100 * 100)


def broken(*_):
    raise ValueError("the wheel came off")


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(
    "forward, backward",
    [(broken, lambda tensors, gradient: (gradient,)), (lambda x: 2.0 * x, broken)],
    ids=["forward", "backward"],
)
def test_an_exception_is_raised(forward, backward, compiled):
    function = with_gradient(forward, backward, trained=1)
    with pytest.raises(ValueError, match="the wheel came off"):
        value_and_gradients(function, np.ones(3, "float32"), compiled=compiled)


def test_an_exception_that_comes_once_does_not_become_a_nan_gradient():
    """As it does in `keras.ops.custom_gradient` on torch, which then tries again."""
    calls = []

    def forward(x):
        calls.append(x)
        if len(calls) == 1:
            broken()
        return 2.0 * x

    function = with_gradient(
        forward, lambda tensors, gradient: (2.0 * gradient,), trained=1
    )
    with pytest.raises(ValueError, match="the wheel came off"):
        value_and_gradients(function, np.ones(3, "float32"), compiled=False)
    assert len(calls) == 1


def test_the_hand_written_gradient_is_the_one_used():
    def backward(tensors, gradient):
        return (7.0 * gradient * tensors[0],)

    function = with_gradient(lambda x, y: x + y, backward, trained=1)
    x, y = np.array([1, 2], "float32"), np.array([3, 4], "float32")
    value, (x_gradient, y_gradient) = value_and_gradients(function, x, y)
    assert value.tolist() == [4.0, 6.0]
    assert x_gradient.tolist() == [7.0, 14.0]
    assert has_no_gradient(y_gradient)


@pytest.mark.skipif(BACKEND != "torch", reason="asks torch what it keeps")
@every_case
@every_way
def test_torch_keeps_no_new_memory_for_the_backward_pass(case, way):
    import torch

    product = product_of(case)
    x, kernel, lambda_, gamma = (
        ops.convert_to_tensor(array).clone() for array in arrays_of(case, product)
    )
    for tensor in (x, lambda_, gamma):
        tensor.requires_grad_()
    known = [x, kernel, lambda_, gamma, *product.bank.stored()]
    known = {tensor.untyped_storage().data_ptr() for tensor in known}
    kept = []

    def keep(tensor):
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if way == "materialized":
            outputs = product.materialized(x, [kernel], lambda_, gamma)
        else:
            outputs = product.factored(x, lambda_, gamma)
    assert x.untyped_storage().data_ptr() in kept
    assert set(kept) <= known
    outputs.sum().backward()
    assert kernel.grad is None


@pytest.mark.skipif(BACKEND != "jax", reason="asks JAX what it keeps")
@every_way
def test_jax_keeps_nothing_but_the_arguments_for_the_backward_pass(way):
    import jax

    product = product_of("query")
    x, kernel, lambda_, gamma = map(ops.convert_to_tensor, arrays_of("query", product))

    def function(x, lambda_, gamma):
        if way == "materialized":
            return product.materialized(x, [kernel], lambda_, gamma)
        return product.factored(x, lambda_, gamma)

    _, pullback = jax.vjp(function, x, lambda_, gamma)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if leaf.ndim]
    known = [x, kernel, lambda_, gamma, *product.bank.stored()]
    assert kept
    for leaf in kept:
        assert any(np.array_equal(leaf, array) for array in known)


@pytest.mark.skipif(BACKEND != "torch", reason="inference mode is torch's")
@every_way
def test_torch_inference_needs_no_gradient(way):
    import torch

    product = product_of("query")
    tensors = [ops.convert_to_tensor(a) for a in arrays_of("query", product)]
    with torch.inference_mode():
        outputs = adapted(way, product, *tensors)
    assert_close(as_numpy(outputs), expected("query")[0], TOLERANCE)


@pytest.mark.skipif(BACKEND != "torch", reason="torch's own mixed precision")
@pytest.mark.parametrize("compute", ["materialized", "factored"])
def test_gradients_under_torch_autocast(compute):
    import torch

    layer = RandLoRADense(8, rank=2, compute=compute)
    inputs = np.random.default_rng(0).standard_normal((3, 6)).astype("float32")
    layer.build(inputs.shape)
    layer.randlora.lambda_.assign(np.ones(layer.randlora.lambda_.shape))
    found = []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = layer(inputs)
        (outputs.float() ** 2).sum().backward()
        found.append(as_numpy(layer.randlora.lambda_.value.grad))
    assert_close(found[1], found[0], 0.05)


@pytest.mark.parametrize("compute", ["factored", "auto"])
def test_what_is_read_or_a_batch_is_formed(compute):
    shape = UpdateShape.of_kernel(80, 50, 2)
    bank = BasisBank.for_shapes([shape], BasisSpec("uniform", None, seed=5))
    batch = einsum_layout("bhi,hio->bho", (3, 80, 50))
    for layout in (read_layout("in out", (80, 50)), batch):
        product = AdaptedProduct(layout, None, shape, bank, SCALE)
        assert product.way(compute, 1) == "materialized"
