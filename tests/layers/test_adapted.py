"""RandLoRADense and RandLoRAEinsumDense against NumPy and the plain Keras layers."""

import json
import re

import keras
import numpy as np
import pytest
import reference
from backend import (
    BACKEND,
    as_numpy,
    assert_close,
    assert_same_arrays,
    evaluate,
    h5_arrays,
    value_and_gradients,
)
from einsum_equations import BATCHED_EQUATIONS, EQUATIONS
from keras import ops
from keras.src import testing
from models import update_by_formula

import keras_randlora as kr
from keras_randlora.layers import RandLoRADense, RandLoRAEinsumDense
from keras_randlora.update.bank import BasisBank

TOLERANCE = 1e-5
WAYS = ["materialized", "factored"]
HALF_POLICIES = ["mixed_bfloat16", "bfloat16", "mixed_float16"]
every_way = pytest.mark.parametrize("compute", WAYS)


def entries(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def randomize_layer(layer, seed=1):
    """Give λ, γ and the bias random values; the update becomes as large as W."""
    adapter = layer.randlora
    adapter.lambda_.assign(0.1 * entries(adapter.lambda_.shape, seed))
    adapter.gamma.assign(0.1 * entries(adapter.gamma.shape, seed + 1))
    if layer.bias is not None:
        layer.bias.assign(entries(layer.bias.shape, seed + 2))
    return layer


def dense(units=5, width=8, randomized=True, **kwargs):
    """Return a built `RandLoRADense` of rank 2."""
    layer = RandLoRADense(units, rank=2, **kwargs)
    layer.build((None, width))
    return randomize_layer(layer) if randomized else layer


def plain_twin(layer, input_shape):
    """Return the plain Keras layer with the same options, kernel and bias."""
    plain = layer.plain_class.from_config(layer.plain_class.get_config(layer))
    plain.build(input_shape)
    plain.kernel.assign(layer._kernel)
    if layer.bias is not None:
        plain.bias.assign(layer.bias)
    return plain


def merged_by_reference(layer):
    """Return the kernel plus the update that the loops of the reference give."""
    layout = layer.kernel_layout()
    delta = update_by_formula(layer)
    delta = reference.to_kernel(delta, layout.equation, layout.kernel_shape)
    return as_numpy(layer._kernel).astype("float64") + delta


def names(variables):
    return sorted(variable.name for variable in variables)


def call_and_gradients(layer, x, upstream=None):
    """Return a layer's output, the gradient of its input, and of what it trains."""

    def call(x, *values):
        given = list(zip(layer.trainable_variables, values, strict=True))
        with keras.StatelessScope(state_mapping=given):
            return layer(x)

    trained = [as_numpy(variable) for variable in layer.trainable_variables]
    outputs, (x, *rest) = value_and_gradients(call, x, *trained, upstream=upstream)
    by_name = [variable.name for variable in layer.trainable_variables]
    return outputs, x, dict(zip(by_name, rest, strict=True))


# Keras's own test of a layer

# Keras's check of mixed precision wants every floating-point weight in float32. Bases
# with real entries are held in the compute dtype, so it is for the other layers.
RUN_LAYER_TEST = {
    "dense": (RandLoRADense, {"units": 5}, (4, 7), (4, 5)),
    "dense of four axes, bases of signs": (
        RandLoRADense,
        {"units": 9, "use_bias": False, "basis": "binary"},
        (2, 3, 2, 6),
        (2, 3, 2, 9),
    ),
    "query, bases in no weight": (
        RandLoRAEinsumDense,
        {
            "equation": "btd,ndh->btnh",
            "output_shape": (3, 2, 3),
            "basis_storage": "regenerated",
            "compute": "materialized",
        },
        (2, 3, 5),
        (2, 3, 2, 3),
    ),
    "output with bias and dropout": (
        RandLoRAEinsumDense,
        {
            "equation": "...nh,nhd->...d",
            "output_shape": (5,),
            "bias_axes": "d",
            "basis": "sparse",
            "dropout": 0.5,
        },
        (2, 3, 2, 3),
        (2, 3, 5),
    ),
}


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
@pytest.mark.parametrize(
    "layer_class, arguments, input_shape, output_shape",
    RUN_LAYER_TEST.values(),
    ids=RUN_LAYER_TEST,
)
def test_keras_run_layer_test(layer_class, arguments, input_shape, output_shape):
    has_bias = layer_class is RandLoRADense and arguments.get("use_bias", True)
    has_bias = has_bias or "bias_axes" in arguments
    stored = arguments.get("basis_storage") != "regenerated"
    testing.TestCase().run_layer_test(
        layer_class,
        init_kwargs={"rank": 2, **arguments},
        input_shape=input_shape,
        expected_output_shape=output_shape,
        expected_num_trainable_weights=3 if has_bias else 2,
        expected_num_non_trainable_weights=3 if stored else 1,
        expected_num_seed_generators=1 if "dropout" in arguments else 0,
        expected_num_losses=0,
        supports_masking=layer_class is RandLoRADense,
        run_mixed_precision_check="basis" in arguments or not stored,
    )


# What the layers compute

DENSE_CASES = {
    "inputs below outputs": ((4, 5), 8, {}),
    "inputs above outputs": ((4, 8), 5, {"basis": "sparse", "alpha": 6}),
    "square": ((4, 7), 7, {"basis": "binary"}),
    "four axes": ((2, 3, 2, 7), 4, {"basis": "normal"}),
    "fewer bases": ((4, 9), 8, {"num_bases": 2}),
    "no bias": ((4, 5), 8, {"use_bias": False}),
    "activation": ((4, 5), 8, {"activation": "tanh"}),
    "regenerated": ((4, 5), 8, {"basis_storage": "regenerated"}),
}


@every_way
@pytest.mark.parametrize(
    "input_shape, units, options", DENSE_CASES.values(), ids=DENSE_CASES
)
def test_dense_is_the_product_with_the_papers_kernel(
    input_shape, units, options, compute
):
    layer = dense(units, input_shape[-1], compute=compute, **options)
    x = entries(input_shape)
    expected = x @ merged_by_reference(layer)
    if layer.bias is not None:
        expected = expected + as_numpy(layer.bias)
    if layer.activation is keras.activations.tanh:
        expected = np.tanh(expected)
    assert_close(evaluate(layer, x), expected, TOLERANCE)


def test_the_number_of_inputs_may_be_unknown():
    layer = RandLoRAEinsumDense("btd,ndh->btnh", (None, 2, 3), rank=2)
    inputs = keras.Input((None, 5))
    outputs = layer(inputs)
    assert outputs.shape == (None, None, 2, 3)
    model = keras.Model(inputs, outputs)
    randomize_layer(layer)
    for shape in ((2, 3, 5), (1, 4, 5)):
        x = entries(shape)
        expected = np.einsum("btd,ndh->btnh", x, merged_by_reference(layer))
        assert_close(model.predict(x, verbose=0), expected, TOLERANCE)


# equation and shapes -> case: of two that differ in the bias only, the one with it
EQUATION_CASES = {
    (case.equation, case.input_shape, case.output_shape): case
    for case in sorted(EQUATIONS, key=lambda case: case.bias_axes or "")
}


@pytest.mark.parametrize(
    "number, case",
    list(enumerate(EQUATION_CASES.values())),
    ids=[f"{case.equation} {case.where}" for case in EQUATION_CASES.values()],
)
def test_every_equation_in_use(number, case):
    """At the start the plain layer, bit for bit; then its kernel plus the update."""
    layer = RandLoRAEinsumDense(
        case.equation,
        case.output_shape,
        rank=3,
        bias_axes=case.bias_axes,
        kernel_initializer="zeros",
        compute=WAYS[number % 2],
    )
    layer.build(case.input_shape)
    layer._kernel.assign(entries(layer._kernel.shape, seed=4))
    if layer.bias is not None:
        layer.bias.assign(entries(layer.bias.shape, seed=5))
    plain = plain_twin(layer, case.input_shape)
    x = entries(case.input_shape)
    assert np.array_equal(as_numpy(layer(x)), as_numpy(plain(x)))

    randomize_layer(layer)
    outputs, x_gradient, gradients = call_and_gradients(layer, x)
    expected = np.einsum(case.equation, x, merged_by_reference(layer))
    if layer.bias is not None:
        expected = expected + as_numpy(layer.bias)
    assert_close(outputs, expected, TOLERANCE)
    assert np.any(x_gradient)
    assert {"lambda", "gamma"} <= set(gradients)
    for gradient in gradients.values():
        assert np.any(gradient)


@every_way
@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}], ids=["", "dropout"])
def test_the_start_is_the_plain_dense_layer_bit_for_bit(compute, options):
    layer = dense(33, 65, randomized=False, compute=compute, **options)
    layer.bias.assign(entries((33,), seed=2))
    plain = plain_twin(layer, (None, 65))
    x = entries((7, 65))
    for training in (False, True):
        outputs = as_numpy(layer(x, training=training))
        assert np.array_equal(outputs, as_numpy(plain(x)))


def test_what_a_new_layer_holds():
    layer = dense(randomized=False)
    assert names(layer.trainable_weights) == ["bias", "gamma", "lambda"]
    assert names(layer.non_trainable_weights) == ["basis_a", "basis_b", "kernel"]
    assert layer.randlora.lambda_.path == f"{layer.path}/randlora/lambda"
    assert layer.randlora.gamma.path == f"{layer.path}/randlora/gamma"
    assert np.array_equal(as_numpy(layer.randlora.lambda_), np.zeros((2, 3)))
    assert np.array_equal(
        as_numpy(layer.randlora.gamma), np.full((3, 5), 0.2, "float32")
    )


@pytest.mark.parametrize("alpha, scale", [(None, 20.0), (3, 1.5)])
def test_the_scale_is_alpha_over_rank(alpha, scale):
    assert dense(alpha=alpha).randlora.product.scale == scale


def test_merged_kernel_is_the_references():
    layer = dense()
    assert_close(as_numpy(layer.merged_kernel()), merged_by_reference(layer), TOLERANCE)
    back = as_numpy(layer.unmerged_kernel(layer.merged_kernel()))
    assert_close(back, as_numpy(layer._kernel), TOLERANCE)


@pytest.mark.parametrize("dtype", ["int32", "bool"])
@every_way
def test_inputs_may_be_integers(dtype, compute):
    layer = dense(compute=compute)
    x = (np.arange(24).reshape(3, 8) % 3).astype(dtype)
    expected = x @ merged_by_reference(layer) + as_numpy(layer.bias)
    assert_close(as_numpy(layer(x)), expected, TOLERANCE)


def test_the_mask_goes_through():
    from keras.src.backend.common.masking import get_keras_mask

    tokens = np.array([[3, 1, 0], [2, 0, 0]])
    embedded = keras.layers.Embedding(5, 8, mask_zero=True)(tokens)
    outputs = dense()(embedded)
    mask = get_keras_mask(outputs)
    assert as_numpy(mask).tolist() == [[True, True, False], [True, False, False]]


def test_auto_goes_by_the_tokens_of_the_input():
    layer = dense(50, 80)  # see test_product.WAYS
    assert layer.randlora.way((32, 80)) == "factored"
    assert layer.randlora.way((2, 16, 80)) == "factored"
    assert layer.randlora.way((33, 80)) == "materialized"
    assert layer.randlora.way((None, 80)) == "materialized"
    assert dense(50, 80, dropout=0.1).randlora.way((39, 80)) == "factored"


# Dropout


@every_way
def test_dropout_leaves_the_base_output(compute):
    """All that the adapter sees is dropped, but nothing of what the kernel sees."""
    layer = dense(compute=compute, dropout=1 - 1e-9)
    x = entries((6, 8))
    outputs = as_numpy(layer(x, training=True))
    assert np.array_equal(outputs, as_numpy(plain_twin(layer, (None, 8))(x)))


@every_way
def test_dropout_is_off_in_inference(compute):
    layer, without = dense(compute=compute, dropout=0.5), dense(compute=compute)
    without._kernel.assign(layer._kernel)
    x = entries((6, 8))
    by_both = [as_numpy(a(x, training=False)) for a in (layer, without)]
    assert_close(*by_both, 1e-6)
    assert not np.allclose(as_numpy(layer(x, training=True)), by_both[0])


@every_way
def test_dropout_is_unbiased(compute):
    layer = dense(compute=compute, dropout=0.25)
    x = np.repeat(entries((1, 8)), 40_000, axis=0)
    outputs = as_numpy(layer(x, training=True)).astype("float64")
    expected = as_numpy(layer(x[:1], training=False))[0]
    standard_error = np.std(outputs, axis=0) / 200
    assert np.all(standard_error > 0)
    assert np.all(np.abs(np.mean(outputs, axis=0) - expected) < 5 * standard_error)


# Dtypes


@pytest.mark.parametrize("policy", HALF_POLICIES)
@every_way
def test_lambda_gamma_and_their_gradients_are_float32(policy, compute):
    layer = dense(dtype=policy, compute=compute)
    adapter = layer.randlora
    half = keras.DTypePolicy(policy).compute_dtype
    assert adapter.lambda_.dtype == adapter.gamma.dtype == "float32"
    assert layer._kernel.dtype == layer.bias.dtype == layer.variable_dtype
    x = entries((6, 8))
    upstream = entries((6, 5), seed=9)
    outputs, _, gradients = call_and_gradients(layer, x, upstream)
    assert outputs.dtype == half
    assert gradients["lambda"].dtype == gradients["gamma"].dtype == "float32"

    exact = dense()
    exact._kernel.assign(ops.cast(layer._kernel.value, "float32"))
    exact_outputs, _, exact_gradients = call_and_gradients(exact, x, upstream)
    assert_close(outputs, exact_outputs, 0.03)
    for name in ("lambda", "gamma"):
        assert_close(gradients[name], exact_gradients[name], 0.03)


@pytest.mark.parametrize("policy", HALF_POLICIES)
def test_a_small_step_of_lambda_is_not_lost(policy):
    """γ's gradient is linear in λ; in half precision 1 + 2**-11 would be 1."""
    layer = dense(dtype=policy)
    gradients = []
    for value in (1.0, 1.0 + 2.0**-11):
        layer.randlora.lambda_.assign(np.full((2, 3), value, "float32"))
        gradients.append(call_and_gradients(layer, entries((6, 8)))[2]["gamma"])
    assert_close(gradients[1], gradients[0] * np.float32(1.0 + 2.0**-11), 1e-6)


@pytest.mark.parametrize("policy", HALF_POLICIES)
def test_both_storages_merge_to_the_same_kernel(policy):
    merged = []
    for storage in ("stored", "regenerated"):
        layer = dense(dtype=policy, basis_storage=storage)
        layer._kernel.assign(np.ones((8, 5)))
        merged.append(as_numpy(layer.merged_kernel()).tobytes())
    assert merged[0] == merged[1]


def test_a_policy_of_float8_is_refused():
    layer = RandLoRADense(4, rank=2, dtype="float8_from_float32", name="narrow")
    message = "Layer 'narrow' is quantized as 'float8', which RandLoRA does not adapt"
    with pytest.raises(ValueError, match=message):
        layer.build((None, 8))


# What is trained


def test_the_kernel_stays_frozen_whatever_trainable_is():
    layer = dense()
    for trainable, expected in [
        (True, ["bias", "gamma", "lambda"]),
        (False, []),
        (True, ["bias", "gamma", "lambda"]),
    ]:
        layer.trainable = trainable
        assert names(layer.trainable_variables) == expected
        assert not layer._kernel.trainable


def test_a_model_that_is_thawed_keeps_the_kernel_frozen():
    layer = RandLoRADense(5, rank=2, train_bias=False)
    model = keras.Sequential([keras.Input((8,)), layer, keras.layers.Dense(3)])
    for trainable, expected in [
        (False, []),
        (True, ["bias", "gamma", "kernel", "lambda"]),  # kernel, bias: the plain layer
    ]:
        model.trainable = trainable
        assert names(model.trainable_variables) == expected
        assert names(layer.trainable_variables) == [
            name for name in expected if name in ("gamma", "lambda")
        ]


def test_a_layer_made_untrainable_trains_nothing_until_it_is_thawed():
    layer = RandLoRADense(5, rank=2, trainable=False)
    model = keras.Sequential([keras.Input((8,)), layer])
    assert model.trainable_variables == []
    layer.trainable = True
    assert names(model.trainable_variables) == ["bias", "gamma", "lambda"]


def test_fit_moves_lambda_and_gamma_and_not_the_kernel():
    layer = dense(4, compute="auto")
    model = keras.Sequential([keras.Input((8,)), layer])
    model.compile(keras.optimizers.SGD(0.001), "mse", jit_compile=False)
    before = {v.name: as_numpy(v).copy() for v in model.variables}
    x, y = entries((16, 8)), entries((16, 4), seed=1)
    losses = model.fit(x, y, epochs=4, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    moved = [v.name for v in layer.weights if np.any(as_numpy(v) != before[v.name])]
    assert sorted(moved) == ["bias", "gamma", "lambda"]


def test_a_layer_used_twice_gets_the_sum_of_both_gradients():
    layer = dense(8, 8, use_bias=False)
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layer(layer(inputs)))
    assert names(model.weights) == ["basis_a", "basis_b", "gamma", "kernel", "lambda"]
    x = entries((3, 8))
    kernel = merged_by_reference(layer)
    outputs, _, gradients = call_and_gradients(model, x)
    assert_close(outputs, x @ kernel @ kernel, TOLERANCE)

    lambda_ = as_numpy(layer.randlora.lambda_).astype("float64")

    def loss(moved):
        layer.randlora.lambda_.assign(moved)
        kernel = merged_by_reference(layer)
        return np.sum(x @ kernel @ kernel)

    # λ is held in float32, so the step is one that float32 represents well.
    slopes = reference.slopes(loss, lambda_, step=2.0**-6)
    assert_close(gradients["lambda"], slopes, 1e-4)


# Configurations and files

CONFIGS = {
    "dense": RandLoRADense(
        5,
        rank=3,
        alpha=7.5,
        basis="ternary",
        sparsity=4,
        seed=11,
        num_bases=2,
        dropout=0.25,
        basis_storage="regenerated",
        compute="factored",
        train_bias=False,
        activation="relu",
        kernel_initializer="zeros",
    ),
    "einsum dense": RandLoRAEinsumDense(
        "btd,ndh->btnh", (None, 2, 3), rank=2, bias_axes="nh", activation="gelu"
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_round_trip(name):
    layer = CONFIGS[name]
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    assert config["registered_name"] == f"keras_randlora>{type(layer).__qualname__}"
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    assert again.options == layer.options


def test_the_options_in_a_config_are_those_of_the_constructor():
    config = CONFIGS["dense"].get_config()
    expected = {
        "units": 5,
        "rank": 3,
        "alpha": 7.5,
        "basis": "ternary",
        "sparsity": 4.0,
        "seed": 11,
        "num_bases": 2,
        "dropout": 0.25,
        "basis_storage": "regenerated",
        "compute": "factored",
        "train_bias": False,
        "bank": None,
    }
    assert {name: config[name] for name in expected} == expected


def functional_model(bank=None, **options):
    """Return a model of two adapted layers, 6×10 and 10×8, with random values."""
    options = {"rank": 2, "bank": bank, "basis": "sparse", **options}
    inputs = keras.Input((3, 6))
    x = RandLoRADense(10, activation="tanh", name="first", **options)(inputs)
    outputs = RandLoRAEinsumDense(
        "btd,ndh->btnh", (None, 2, 4), bias_axes="nh", name="second", **options
    )(x)
    model = keras.Model(inputs, outputs)
    for seed, name in enumerate(["first", "second"]):
        randomize_layer(model.get_layer(name), seed=10 * seed)
    return model


def shared_bank():
    return BasisBank(2, 8, 10, 8, basis="sparse", sparsity=6.0, seed=5)


def values_of(model):
    return {v.path: as_numpy(v).tobytes() for v in model.variables}


def spoil(model):
    """Change every weight that a file holds."""
    for layer in model.layers[1:]:
        randomize_layer(layer, seed=77)
        layer._kernel.assign(entries(layer._kernel.shape, seed=78))


@pytest.mark.parametrize("shared", [False, True], ids=["own banks", "one shared bank"])
def test_a_saved_model_comes_back_the_same(tmp_path, shared):
    model = functional_model(shared_bank() if shared else None)
    x = entries((2, 3, 6))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    first, second = again.get_layer("first"), again.get_layer("second")
    assert type(first) is RandLoRADense
    assert type(second) is RandLoRAEinsumDense
    assert (first.bank is second.bank) is shared
    # A kernel, a bias, λ and γ for each layer, and one or two pairs of bases.
    assert len(again.weights) == len(model.weights) == (10 if shared else 12)
    assert list(values_of(again).values()) == list(values_of(model).values())
    assert np.array_equal(as_numpy(again(x)), as_numpy(model(x)))
    assert names(again.trainable_weights) == names(model.trainable_weights)


@pytest.mark.parametrize("policy", ["float32", "bfloat16", "mixed_float16"])
@pytest.mark.parametrize("shared", [False, True], ids=["own banks", "one shared bank"])
def test_save_load_save_is_bit_identical(tmp_path, policy, shared):
    bank = shared_bank() if shared else None
    model = functional_model(bank, dtype=policy, dropout=0.5)
    before = values_of(model)
    model.save_weights(tmp_path / "first.weights.h5")
    assert values_of(model) == before
    spoil(model)
    assert values_of(model) != before
    model.load_weights(tmp_path / "first.weights.h5")
    assert values_of(model) == before
    model.save_weights(tmp_path / "second.weights.h5")
    first = h5_arrays(tmp_path / "first.weights.h5")
    assert len(first) > 8
    assert_same_arrays(h5_arrays(tmp_path / "second.weights.h5"), first)


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_a_weights_file_is_at_most_twice_the_plain_one(tmp_path, policy):
    inputs = keras.Input((256,))
    layer = RandLoRADense(256, rank=32, dtype=policy, name="d")
    model = keras.Model(inputs, layer(inputs))
    rng = np.random.default_rng(0)
    layer.randlora.lambda_.assign(rng.standard_normal((32, 8)))
    update, kernel = (
        as_numpy(array).astype("float32")
        for array in (layer.randlora.update(), layer._kernel)
    )
    scale = update.std() / kernel.std()
    for size, whole in ((1e-3, False), (16.0, True)):
        layer.randlora.lambda_.assign(size / scale * rng.standard_normal((32, 8)))
        before = values_of(model)
        path = tmp_path / f"{size}.weights.h5"
        model.save_weights(path)
        arrays = h5_arrays(path)
        assert any(name.endswith("base_kernel") for name in arrays) is whole
        assert any(name.endswith("base_index") for name in arrays) is not whole
        spoil(model)
        model.load_weights(path)
        assert values_of(model) == before


@pytest.mark.skipif(BACKEND == "jax", reason="JAX has no float64 by default")
def test_kernels_in_float64_keep_their_precision(tmp_path):
    inputs = keras.Input((6,), dtype="float64")
    dense = keras.layers.Dense(4, dtype="float64", name="d")
    model = keras.Model(inputs, dense(inputs))
    kernel = 1 + 1e-12 * np.arange(24.0).reshape(6, 4)
    dense._kernel.assign(kernel)
    kr.enable_randlora(model, rank=2, targets="d")
    model.save_weights(tmp_path / "a.weights.h5")
    dense._kernel.assign(np.zeros((6, 4)))
    model.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(as_numpy(dense._kernel), kernel)
    kr.merge_randlora(model)
    np.testing.assert_array_equal(as_numpy(dense._kernel), kernel)


REBUILT = {
    "clone_model": keras.models.clone_model,
    "to_json": lambda model: keras.models.model_from_json(model.to_json()),
}


@pytest.mark.parametrize("way", REBUILT)
def test_a_rebuilt_model_has_one_bank_for_the_layers_that_shared_one(way):
    model = functional_model(shared_bank())
    again = REBUILT[way](model)
    assert again.get_layer("first").bank is again.get_layer("second").bank
    again.set_weights(model.get_weights())
    x = entries((2, 3, 6))
    assert np.array_equal(as_numpy(again(x)), as_numpy(model(x)))


def test_a_layers_name_tells_that_it_is_adapted():
    layer = RandLoRADense(3, rank=2, name="dense_of_a_list")
    assert repr(layer).startswith("<RandLoRADense name=dense_of_a_list")


# What the saved weights were trained with, what the other layer has, the message.
OTHERS = {
    "seed": ({}, {"seed": 1}, "seed=0; the layer has seed=1"),
    "alpha": ({}, {"alpha": 3.0}, "alpha=40.0; the layer has alpha=3.0"),
    "rank": ({}, {"rank": 3}, "rank=2, num_bases=3, .*; the layer has rank=3, num_bas"),
    "basis": ({}, {"basis": "binary"}, "'sparse', .*; the layer has basis='binary'"),
    "sparsity": (
        {"basis": "ternary", "sparsity": 3},
        {"basis": "ternary", "sparsity": 4},
        "sparsity=3.0; the layer has sparsity=4.0",
    ),
}


@pytest.mark.parametrize("option", OTHERS)
def test_a_weights_file_of_other_bases_or_scale_is_refused(tmp_path, option):
    trained, options, match = OTHERS[option]
    functional_model(**trained).save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match=f"'first' were trained with .*{match}"):
        functional_model(**options).load_weights(tmp_path / "m.weights.h5")


class Holder(keras.Model):
    """A model that holds one layer by an attribute, adapted or not."""

    def __init__(self, layer):
        super().__init__()
        self.held = layer
        self(np.zeros((1, 8), "float32"))

    def call(self, inputs):
        return self.held(inputs)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_plain_checkpoint_resets_the_update(tmp_path, dropout):
    plain = Holder(keras.layers.Dense(5))
    plain.held.bias.assign(entries((5,)))
    plain.save_weights(tmp_path / "plain.weights.h5")
    adapted = Holder(RandLoRADense(5, rank=2, dropout=dropout))
    layer = randomize_layer(adapted.held)
    adapted.load_weights(tmp_path / "plain.weights.h5")
    assert np.array_equal(as_numpy(layer.randlora.lambda_), np.zeros((2, 3)))
    assert np.array_equal(
        as_numpy(layer.randlora.gamma), np.full((3, 5), 0.2, "float32")
    )
    x = entries((4, 8))
    assert np.array_equal(as_numpy(layer(x)), as_numpy(plain(x)))


def test_a_plain_model_reads_the_merged_kernel(tmp_path):
    adapted = Holder(RandLoRADense(5, rank=2))
    layer = randomize_layer(adapted.held)
    adapted.save_weights(tmp_path / "adapted.weights.h5")
    plain = Holder(keras.layers.Dense(5))
    plain.load_weights(tmp_path / "adapted.weights.h5")
    assert_close(as_numpy(plain.held.kernel), merged_by_reference(layer), TOLERANCE)
    assert np.array_equal(as_numpy(plain.held.bias), as_numpy(layer.bias))


def test_reset_makes_the_update_zero_again():
    layer = dense()
    layer.randlora.reset()
    x = entries((3, 8))
    plain = plain_twin(layer, (None, 8))
    assert np.array_equal(as_numpy(layer(x)), as_numpy(plain(x)))


# Errors

REFUSED_OPTIONS = {
    "rank 0": (
        {"rank": 0},
        ValueError,
        "`rank` must be a positive integer. Received: rank=0.",
    ),
    "negative rank": (
        {"rank": -1},
        ValueError,
        "`rank` must be a positive integer. Received: rank=-1.",
    ),
    "rank 1.5": (
        {"rank": 1.5},
        TypeError,
        "`rank` must be a positive integer. Received: rank=1.5 (of type float).",
    ),
    "rank True": (
        {"rank": True},
        TypeError,
        "`rank` must be a positive integer. Received: rank=True (of type bool).",
    ),
    "num_bases 0": (
        {"num_bases": 0},
        ValueError,
        "`num_bases` must be a positive integer. Received: num_bases=0.",
    ),
    "alpha": (
        {"alpha": "4"},
        TypeError,
        "`alpha` must be a number. Received: alpha='4'",
    ),
    "basis": ({"basis": "gaussian"}, ValueError, "Received: basis='gaussian'."),
    "low sparsity": (
        {"basis": "ternary", "sparsity": 1.5},
        ValueError,
        "`sparsity` must be from 2 to 2**31. Received: sparsity=1.5.",
    ),
    "no sparsity": (
        {"basis": "ternary"},
        ValueError,
        "`sparsity` must be given with basis='ternary', for example sparsity=100. "
        "Received: sparsity=None.",
    ),
    "sparsity of another basis": (
        {"sparsity": 6},
        ValueError,
        "`sparsity` can be chosen only with basis='ternary'. Received: sparsity=6 with "
        "basis='uniform'.",
    ),
    "dropout 1": (
        {"dropout": 1.0},
        ValueError,
        "`dropout` must be in [0, 1). Received: dropout=1.0.",
    ),
    "negative seed": (
        {"seed": -1},
        ValueError,
        "`seed` must be an integer in [0, 2**32). Received: seed=-1.",
    ),
    "storage": (
        {"basis_storage": "disk"},
        ValueError,
        "`basis_storage` must be one of ['stored', 'regenerated']. Received: "
        "basis_storage='disk'.",
    ),
    "compute": (
        {"compute": "fast"},
        ValueError,
        "`compute` must be one of ['auto', 'materialized', 'factored']. Received: "
        "compute='fast'.",
    ),
    "kernel_constraint": (
        {"kernel_constraint": "non_neg"},
        ValueError,
        "`kernel_constraint` cannot be combined with RandLoRA. Received: "
        "kernel_constraint='non_neg'.",
    ),
    "lora_rank": (
        {"lora_rank": 4},
        ValueError,
        "`lora_rank` cannot be combined with RandLoRA. Received: lora_rank=4.",
    ),
}


@pytest.mark.parametrize(
    "options, error, message", REFUSED_OPTIONS.values(), ids=REFUSED_OPTIONS
)
def test_options_out_of_range_are_refused(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        RandLoRADense(4, **{"rank": 2, **options})
    with pytest.raises(error, match=re.escape(message)):
        RandLoRAEinsumDense("ab,bc->ac", (4,), **{"rank": 2, **options})


@pytest.mark.parametrize(
    "sizes", [(3, 8, 10, 8), (2, 4, 10, 8), (2, 5, 7, 8), (2, 5, 8, 4)], ids=str
)
def test_a_bank_that_is_too_small_is_refused(sizes):
    bank = BasisBank(*sizes)
    layer = RandLoRADense(5, rank=2, bank=bank, name="wide")
    message = (
        f"The bank of bases is too small for layer 'wide'. It serves rank {sizes[0]}, "
        f"sides up to {sizes[2]} and {sizes[1]}. Received: UpdateShape(inputs=8, "
        "outputs=5, rank=2, num_bases=3)."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        layer.build((None, 8))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("case", BATCHED_EQUATIONS, ids=lambda case: case.where)
def test_a_batch_of_kernels_has_an_update_each(case, dropout):
    layer = RandLoRAEinsumDense(
        case.equation, case.output_shape, rank=2, dropout=dropout
    )
    layer.build(case.input_shape)
    randomize_layer(layer)
    layout, x = layer.kernel_layout(), entries(case.input_shape)
    delta = as_numpy(layout.to_kernel(update_by_formula(layer)))
    expected = np.einsum(case.equation, x, as_numpy(layer._kernel) + delta)
    assert_close(as_numpy(layer(x)), expected, TOLERANCE)
    assert layer.randlora.way(case.input_shape) == "materialized"
    if dropout:
        trained = as_numpy(layer(x, training=True))
        assert np.abs(trained - expected).max() > 1e-2


def test_a_quantized_batch_of_kernels_is_refused():
    layer = keras.layers.EinsumDense("btnh,nhd->btnd", (None, 4, 8))
    layer.build((2, 3, 4, 5))
    layer.quantize("int8")
    with pytest.raises(ValueError, match="Its kernel is a batch of 4 matrices and"):
        RandLoRAEinsumDense.layout_of(layer)


def test_keras_lora_is_refused_on_an_adapted_layer():
    message = "is adapted by RandLoRA and cannot take Keras's LoRA as well. Call "
    with pytest.raises(ValueError, match=message):
        dense().enable_lora(4)


def test_quantize_is_refused_on_an_adapted_layer():
    message = (
        "is adapted by RandLoRA and cannot be quantized. Call `merge_randlora(model)` "
        "first, then `model.quantize(...)`."
    )
    layer = dense()
    kernel = as_numpy(layer._kernel)
    with pytest.raises(ValueError, match=re.escape(message)):
        layer.quantize("int8")
    assert np.array_equal(as_numpy(layer._kernel), kernel)
