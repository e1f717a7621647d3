"""Adapters on quantized kernels: against Keras's own quantized product and the formula.

What a quantized layer multiplies by is found by feeding Keras's plain layer the unit
vectors, whose rounding to 8 bits is exact.
"""

import functools

import keras
import numpy as np
import pytest
import reference
from backend import (
    BACKEND,
    as_numpy,
    assert_close,
    assert_same_arrays,
    value_and_gradients,
)
from keras import ops
from models import (
    EXAMPLES,
    compile_model,
    structure_of,
    update_by_formula,
    values_of,
)
from versions import (
    KERAS,
    NEEDS_INT4_EMBEDDINGS,
    NEEDS_PRESETS_ALONE,
    PASSED_BY,
    needs_mode,
)

import keras_randlora as kr
from keras_randlora.layers.quantized import dense_kernel, held_arrays, kernel_shape
from keras_randlora.layers.straight_through import pass_gradients, restore_rounding
from keras_randlora.tools import has_frozen_objects

pytestmark = PASSED_BY
TOLERANCE = 1e-5
RANK = 3

# name -> (layer, input shape without tokens, whether it rounds its inputs)
LAYERS = {
    "dense": (functools.partial(keras.layers.Dense, 10), (12,)),
    "dense, odd": (functools.partial(keras.layers.Dense, 7, activation="tanh"), (5,)),
    "query": (
        functools.partial(
            keras.layers.EinsumDense, "btd,ndh->btnh", (None, 2, 5), bias_axes="nh"
        ),
        (9,),
    ),
    "attention output": (
        functools.partial(keras.layers.EinsumDense, "btnh,nhd->btd", (None, 7)),
        (2, 3),
    ),
}
# The arguments of `quantize`. Keras 3.12 and 3.13 round the inputs of int4 by default.
MODES = {
    "int8": lambda: {"mode": "int8"},
    "int8, weights": lambda: {
        "config": keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
    },
    "int4, blocks": lambda: {
        "config": keras.quantizers.Int4QuantizationConfig(block_size=4)
    },
    "int4, channels": lambda: {"config": int4_in_channels(None)},
    "int4, rounded inputs": lambda: (
        {"mode": "int4"}
        if KERAS < (3, 14)
        else {"config": int4_in_channels(keras.quantizers.AbsMaxQuantizer())}
    ),
}
ROUNDED = ("int8", "int4, rounded inputs")
MAIN_MODES = ("int8", "int4, blocks")
# The best that each Keras has, for tests of one mode.
INT4 = "int4, blocks" if KERAS >= (3, 14) else "int4, rounded inputs"
WEIGHTS_ONLY = "int8, weights" if KERAS >= (3, 13) else "int8"


def int4_in_channels(activation_quantizer):
    blocks = {"block_size": -1} if KERAS >= (3, 14) else {}
    return keras.quantizers.Int4QuantizationConfig(
        activation_quantizer=activation_quantizer, **blocks
    )


CASES = [
    *(
        pytest.param(name, mode, marks=needs_mode(mode))
        for name in LAYERS
        for mode in MAIN_MODES
    ),
    *(
        pytest.param("query", mode, marks=needs_mode(mode))
        for mode in MODES
        if mode not in MAIN_MODES
    ),
    *((name, "int4, rounded inputs") for name in LAYERS if name != "query"),
]
every_case = pytest.mark.parametrize(("name", "mode"), CASES)
main_modes = pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=needs_mode(mode)) for mode in MAIN_MODES]
)
every_mode = pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=needs_mode(mode)) for mode in MODES]
)


def quantized_model(name, mode, dtype=None):
    """Return a model of one quantized layer."""
    make, features = LAYERS[name]
    model = keras.Sequential(
        [keras.Input((4, *features)), make(name="layer", dtype=dtype)], name="model"
    )
    layer = model.layers[0]
    rng = np.random.default_rng(3)
    for weight in layer.weights:
        weight.assign(rng.standard_normal(weight.shape) / 3)
    layer.quantize(**MODES[mode]())
    return model


def adapted_model(name, mode, trained=True, dtype=None, **options):
    model = quantized_model(name, mode, dtype)
    kr.enable_randlora(model, rank=RANK, targets="layer", **options)
    if trained:
        train(model.layers[0])
    return model


def train(layer):
    """Give an adapted layer an update of the size of its kernel."""
    rng = np.random.default_rng(5)
    adapter = layer.randlora
    adapter.lambda_.assign(0.05 * rng.standard_normal(adapter.lambda_.shape))
    adapter.gamma.assign(rng.standard_normal(adapter.gamma.shape) / 5)


def examples(name, count=2):
    features = LAYERS[name][1]
    shape = (count, 4, *features)
    return np.random.default_rng(1).standard_normal(shape).astype("float32")


def multiplied_by(layer, name):
    """Return the kernel that a plain layer of Keras multiplies by, as a matrix."""
    features = LAYERS[name][1]
    inputs = int(np.prod(features))
    units = np.eye(inputs, dtype="float32").reshape(1, inputs, *features)
    activation, layer.activation = layer.activation, None
    outputs = as_numpy(layer(units))[0] - as_numpy(layer(np.zeros_like(units)))[0]
    layer.activation = activation
    return outputs.reshape(inputs, -1).astype("float64")


def as_matrix(layer, kernel, name):
    """Return a kernel as a matrix, by the equation of the layer."""
    features = LAYERS[name][1]
    inputs = int(np.prod(features))
    units = np.eye(inputs).reshape(1, inputs, *features)
    equation = getattr(layer, "equation", "btd,dc->btc")
    return np.einsum(equation, units, kernel).reshape(inputs, -1)


def rounded(inputs, mode, feature_axes):
    """Return the inputs as a layer that rounds them to 8 bits sees them."""
    if mode not in ROUNDED:
        return inputs
    axes = tuple(range(inputs.ndim - feature_axes, inputs.ndim))
    step = np.max(np.abs(inputs), axis=axes, keepdims=True) / 127
    return np.round(inputs / step) * step


def expected_outputs(name, mode, matrix, bias, inputs):
    features = LAYERS[name][1]
    seen = rounded(inputs.astype("float64"), mode, len(features))
    rows = seen.reshape(-1, int(np.prod(features)))
    outputs = rows @ matrix + (0 if bias is None else as_numpy(bias).reshape(-1))
    return np.tanh(outputs) if name == "dense, odd" else outputs


# The product


@every_case
def test_the_kernel_is_the_one_keras_multiplies_by(name, mode):
    layer = quantized_model(name, mode).layers[0]
    kernel = as_numpy(dense_kernel(layer))
    assert kernel.shape == kernel_shape(layer)
    expected = multiplied_by(layer, name)
    if isinstance(layer, keras.layers.EinsumDense):
        expected = reference.to_kernel(expected, layer.equation, kernel_shape(layer))
    assert_close(kernel, expected, TOLERANCE)


@every_mode
def test_an_untrained_adapter_changes_nothing(mode):
    model = quantized_model("query", mode)
    x = examples("query")
    before = as_numpy(model(x))
    kr.enable_randlora(model, rank=RANK, targets="layer")
    assert_close(as_numpy(model(x)), before, TOLERANCE)


@every_case
@pytest.mark.parametrize("compute", ["materialized", "factored"])
def test_the_product_is_the_formula(name, mode, compute):
    matrix = multiplied_by(quantized_model(name, mode).layers[0], name)
    model = adapted_model(name, mode, compute=compute, basis="kronecker")
    layer = model.layers[0]
    x = examples(name)
    matrix = matrix + update_by_formula(layer)
    expected = expected_outputs(name, mode, matrix, layer.bias, x)
    outputs = as_numpy(model(x))
    assert_close(outputs.reshape(expected.shape), expected, 1e-4)


@every_case
@pytest.mark.parametrize("compute", ["materialized", "factored"])
def test_gradients_are_those_of_the_dequantized_kernel(name, mode, compute):
    """Rounding of inputs passes the gradient on; λ and γ see the rounded inputs."""
    x = examples(name)

    def gradients(model, x):
        adapter = model.layers[0].randlora
        arrays = held_arrays(model.layers[0]).values()

        def outputs(x, lambda_, gamma):
            held = [ops.convert_to_tensor(array) for array in arrays]
            multiply = adapter.product.materialized
            if compute == "factored":
                base = adapter.product.base(x, held)
                return base + adapter.product.factored(x, lambda_, gamma)
            return multiply(x, held, lambda_, gamma)

        factors = as_numpy(adapter.lambda_), as_numpy(adapter.gamma)
        return value_and_gradients(outputs, x, *factors)[1]

    quantized = adapted_model(name, mode)
    in_float = adapted_model(name, mode, trained=False)
    kr.merge_randlora(in_float, dequantize=True)
    kr.enable_randlora(in_float, rank=RANK, targets="layer")
    train(in_float.layers[0])
    seen = rounded(x, mode, len(LAYERS[name][1])).astype("float32")
    expected = gradients(in_float, seen)
    for ours, theirs in zip(gradients(quantized, x), expected, strict=True):
        assert_close(ours, theirs, TOLERANCE)


def test_dropout_acts_on_the_adapter_only():
    model = adapted_model("dense", "int8", dropout=0.5)
    x = examples("dense")
    base = as_numpy(quantized_model("dense", "int8")(x))
    dropped = as_numpy(model(x, training=True)) - base
    kept = as_numpy(model(x, training=False)) - base
    assert not np.allclose(dropped, kept, atol=1e-3)
    model.layers[0].randlora.reset()
    assert_close(as_numpy(model(x, training=True)), base, TOLERANCE)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "bfloat16"])
@main_modes
def test_in_half_precision(mode, dtype):
    model = quantized_model("query", mode, dtype)
    x = examples("query")
    before = as_numpy(model(x)).astype("float32")
    kr.enable_randlora(model, rank=RANK, targets="layer")
    assert_close(as_numpy(model(x)).astype("float32"), before, 2e-2)
    assert model.layers[0].randlora.lambda_.dtype == "float32"


# Merging


@every_case
def test_merging_quantizes_the_exact_sum_as_keras_does(name, mode):
    model = adapted_model(name, mode)
    layer = model.layers[0]
    exact = as_numpy(layer.merged_kernel())
    plain = quantized_model(name, mode)
    kr.merge_randlora(model)
    make, features = LAYERS[name]
    alike = keras.Sequential([keras.Input((4, *features)), make()])
    alike.layers[0].kernel.assign(exact)
    alike.layers[0].quantize(**MODES[mode]())
    merged, expected = held_arrays(layer), held_arrays(alike.layers[0])
    assert structure_of(model) == structure_of(plain)
    assert_same_arrays(merged, expected)


@every_case
def test_merging_errs_by_half_a_step_dequantized_by_nothing(name, mode):
    x = examples(name)
    for dequantize in (False, True):
        model = adapted_model(name, mode)
        layer = model.layers[0]
        exact = as_numpy(layer.merged_kernel())
        kr.merge_randlora(model, dequantize=dequantize)
        found = as_numpy(dense_kernel(layer))
        if dequantize:
            np.testing.assert_array_equal(found, exact)
            assert layer.quantization_mode is None
            assert type(layer) in (keras.layers.Dense, keras.layers.EinsumDense)
            assert as_numpy(layer._kernel).dtype == "float32"
        else:
            levels = 127 if mode.startswith("int8") else 7
            step = np.max(np.abs(exact)) / levels
            error = np.max(np.abs(found - exact))
            assert 0 < error <= 0.51 * step * (1 if "blocks" not in mode else 2)
        # Both multiply by that kernel; one in floating point rounds no inputs.
        matrix = as_matrix(layer, found, name)
        rounding = None if dequantize else mode
        expected = expected_outputs(name, rounding, matrix, layer.bias, x)
        assert_close(as_numpy(model(x)).reshape(expected.shape), expected, TOLERANCE)


def test_a_dequantized_layer_has_its_regularizer_and_its_policy_again():
    layer = keras.layers.Dense(
        5, kernel_regularizer="l2", dtype="mixed_bfloat16", name="layer"
    )
    model = keras.Sequential([keras.Input((8,)), layer])
    paths = [weight.path for weight in model.weights]
    layer.quantize("int8")
    kr.enable_randlora(model, RANK, "layer")
    kr.merge_randlora(model, dequantize=True)
    assert layer.dtype_policy.name == "mixed_bfloat16"
    assert layer._kernel.dtype == "float32" and layer.compute_dtype == "bfloat16"
    assert len(model.losses) == 1
    assert [weight.path for weight in model.weights] == paths


@pytest.mark.usefixtures("nothing_frozen")
def test_all_garbage_is_collected_again_after_a_merge():
    model = quantized_model("dense", "int8")
    for dequantize in (False, True):
        kr.enable_randlora(model, RANK, "layer")
        assert not has_frozen_objects()
        kr.merge_randlora(model, dequantize=dequantize)
        assert not has_frozen_objects()


def test_a_dequantized_model_is_one_that_was_never_quantized():
    model = adapted_model("dense", INT4)
    kr.merge_randlora(model, dequantize=True)
    layer = model.layers[0]
    make, features = LAYERS["dense"]
    plain = keras.Sequential(
        [keras.Input((4, *features)), make(name="layer")], name="model"
    )
    assert {w.path for w in model.weights} == {w.path for w in plain.weights}
    assert layer.dtype_policy.name == "float32"
    compile_model(model)
    copy = keras.Sequential.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    x = examples("dense")
    assert_close(as_numpy(copy(x)), as_numpy(model(x)), 1e-6)
    layer.quantize("int8")


def test_the_merged_block_restores_every_bit():
    model = adapted_model("query", INT4)
    layer, x = model.layers[0], examples("query")
    before = held_arrays(layer)
    with kr.merged(model):
        assert type(layer) is keras.layers.EinsumDense
        inside = as_numpy(model(x))
    assert np.max(np.abs(inside - as_numpy(model(x)))) > 0
    assert_same_arrays(held_arrays(layer), before)


@every_mode
def test_disabling_leaves_the_quantized_kernel(mode):
    model = adapted_model("dense", mode)
    before = values_of(quantized_model("dense", mode))
    kr.disable_randlora(model)
    after = values_of(model)
    assert before.keys() == after.keys()
    for key, value in after.items():
        np.testing.assert_array_equal(value, before[key])


def test_adapters_are_merged_into_quantized_kernels(tmp_path):
    model = adapted_model("dense", WEIGHTS_ONLY)
    exact = as_numpy(model.layers[0].merged_kernel())
    kr.save_adapter(model, tmp_path / "a.safetensors")
    plain = quantized_model("dense", WEIGHTS_ONLY)
    base = as_numpy(dense_kernel(plain.layers[0]))
    weights = {tmp_path / "a.safetensors": 0.5}
    kr.merge_adapters(plain, weights)
    expected = base + 0.5 * (exact - base)
    step = np.max(np.abs(expected), axis=0) / 127
    found = as_numpy(dense_kernel(plain.layers[0]))
    assert np.all(np.abs(found - expected) <= 0.51 * step)


# Files


@every_case
def test_weights_files_restore_base_and_adapter_and_open_plain(name, mode, tmp_path):
    path, again = tmp_path / "a.weights.h5", tmp_path / "b.weights.h5"
    model = adapted_model(name, mode)
    x = examples(name)
    model.save_weights(path)
    fresh = adapted_model(name, mode, trained=False)
    fresh.load_weights(path)
    np.testing.assert_array_equal(as_numpy(fresh(x)), as_numpy(model(x)))
    assert_same_arrays(held_arrays(fresh.layers[0]), held_arrays(model.layers[0]))
    fresh.save_weights(again)
    plain = quantized_model(name, mode)
    plain.load_weights(again)
    kr.merge_randlora(model)
    np.testing.assert_array_equal(as_numpy(plain(x)), as_numpy(model(x)))


@every_mode
def test_a_plain_quantized_file_loads_into_an_adapted_model(mode, tmp_path):
    plain = quantized_model("dense", mode)
    plain.save_weights(tmp_path / "a.weights.h5")
    model = adapted_model("dense", mode)
    model.load_weights(tmp_path / "a.weights.h5")
    x = examples("dense")
    assert_close(as_numpy(model(x)), as_numpy(plain(x)), TOLERANCE)


@every_mode
def test_a_saved_adapted_model_loads(mode, tmp_path):
    model = adapted_model("query", mode)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    x = examples("query")
    assert_close(as_numpy(loaded(x)), as_numpy(model(x)), 1e-6)
    assert loaded.layers[0].quantization_mode == mode[:4]


def test_an_adapter_serves_the_base_in_float_and_quantized(tmp_path):
    path = tmp_path / "a.safetensors"
    quantized = adapted_model("attention output", INT4)
    kr.save_adapter(quantized, path)
    make, features = LAYERS["attention output"]
    in_float = keras.Sequential([keras.Input((4, *features)), make(name="layer")])
    kr.load_adapter(in_float, path)
    assert_same_arrays(kr.get_adapter(in_float), kr.get_adapter(quantized))
    other = quantized_model("attention output", "int8")
    kr.load_adapter(other, path)
    found, expected = (
        update_by_formula(model.layers[0]) for model in (other, quantized)
    )
    assert_close(found, expected, 1e-6)


# Whole models


@pytest.mark.parametrize(
    "example, mode",
    [
        pytest.param("llama3", "int4", marks=NEEDS_INT4_EMBEDDINGS),
        ("gemma3", "int8"),
    ],
)
def test_a_language_model_trains_and_merges(example, mode):
    case = EXAMPLES[example]
    model = case.build()
    model.quantize(mode)
    report = kr.enable_randlora(model, rank=2, targets="all-linear")
    before = {
        layer.path: held_arrays(layer)
        for layer in model._flatten_layers()
        if hasattr(layer, "randlora")
    }
    assert len(before) == len(report.layers)
    losses = case.fit(model, steps=5).history["loss"]
    assert losses[-1] < losses[0]
    for layer in model._flatten_layers():
        if hasattr(layer, "randlora"):
            assert_same_arrays(held_arrays(layer), before[layer.path])
    outputs = case.outputs(model)
    kr.merge_randlora(model, dequantize=True)
    rounds_inputs = mode == "int8" or KERAS < (3, 14)
    assert_close(case.outputs(model), outputs, 5e-2 if rounds_inputs else 1e-4)


@NEEDS_PRESETS_ALONE
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_presets(mode, tmp_path):
    """The preset of an adapted model opens plain and merged; it is adapted again.

    Keras 3.15 itself cannot save a model that it has loaded from a quantized preset.
    """
    import keras_hub

    case = EXAMPLES["llama3"]
    model = case.build()
    model.quantize(mode)
    kr.enable_randlora(model, rank=2, targets="all-linear")
    case.fit(model, steps=1)
    model.save_to_preset(tmp_path)
    kr.merge_randlora(model)
    outputs = case.outputs(model)
    loaded = keras_hub.models.CausalLM.from_preset(str(tmp_path), preprocessor=None)
    # Keras rounds the inputs of a loaded int4 embedding, and not those of its origin.
    assert_close(case.outputs(loaded), outputs, TOLERANCE if mode == "int8" else 2e-2)
    outputs = case.outputs(loaded)
    kr.enable_randlora(loaded, rank=2, targets="all-linear")
    assert_close(case.outputs(loaded), outputs, 1e-4)
    losses = case.fit(loaded, steps=4).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="reads the SavedModel there")
@main_modes
def test_a_quantized_model_is_exported_merged(mode, tmp_path):
    import tensorflow as tf

    model = adapted_model("query", mode)
    kr.export_merged(model, tmp_path / "saved", format="tf_saved_model")
    kr.merge_randlora(model)
    x = examples("query")
    loaded = tf.saved_model.load(tmp_path / "saved")
    assert_close(as_numpy(loaded.serve(x)), as_numpy(model(x)), TOLERANCE)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_gradients_pass_the_rounding_of_tied_embeddings(mode):
    """As through the dequantized embedding; the logits are the same, bit for bit."""
    layer = keras.layers.ReversibleEmbedding(11, 6)
    layer.build((None,))
    layer.quantize(**MODES["int4, rounded inputs" if mode == "int4" else mode]())
    x = np.random.default_rng(0).standard_normal((3, 6)).astype("float32")
    upstream = np.random.default_rng(1).standard_normal((3, 11)).astype("float32")

    def logits(x):
        return layer(x, reverse=True)

    before = as_numpy(logits(x))
    pass_gradients(layer)
    np.testing.assert_allclose(as_numpy(logits(x)), before, rtol=1e-6, atol=1e-7)
    _, (gradient,) = value_and_gradients(logits, x, upstream=upstream)
    kernel = as_numpy(logits(np.eye(6, dtype="float32")))
    assert_close(gradient, upstream @ kernel.T, TOLERANCE)
    restore_rounding(layer)
    np.testing.assert_array_equal(as_numpy(logits(x)), before)


@pytest.mark.parametrize("leave", [kr.disable_randlora, kr.merge_randlora])
def test_a_plain_model_rounds_as_it_did(leave):
    tokens = keras.Input((4,), dtype="int32")
    embedding = keras.layers.ReversibleEmbedding(11, 6, name="words")
    x = keras.layers.Dense(6, name="layer")(embedding(tokens))
    model = keras.Model(tokens, embedding(x, reverse=True))
    model.quantize("int8")
    quantizer = embedding.inputs_quantizer
    assert quantizer is not None
    kr.enable_randlora(model, RANK, "layer")
    assert embedding.inputs_quantizer is not quantizer
    leave(model)
    assert embedding.inputs_quantizer is quantizer


# What is refused


@pytest.mark.parametrize(
    "mode",
    ["float8", "gptq/4/16", pytest.param("awq/4/16", marks=needs_mode("awq"))],
)
def test_other_modes_are_refused_by_name(mode):
    layer = kr.RandLoRADense(4, rank=2, dtype=f"{mode}_from_float32", name="narrow")
    name = mode.partition("/")[0]
    with pytest.raises(ValueError, match=f"'narrow' is quantized as '{name}', which"):
        layer.build((None, 8))


def test_a_model_of_another_mode_stays_as_it_is():
    model = EXAMPLES["mlp"].build()
    model.get_layer("hidden_1").quantize("float8")
    before = structure_of(model)
    with pytest.raises(ValueError, match="'hidden_1' is quantized as 'float8'"):
        kr.enable_randlora(model, rank=2, targets="all-linear")
    assert structure_of(model) == before


def test_an_adapted_model_is_not_quantized_in_part():
    model = EXAMPLES["mlp"].build()
    kr.enable_randlora(model, rank=2, targets="hidden_1")
    before = structure_of(model)
    with pytest.raises(ValueError, match="is adapted by RandLoRA: its kernels cannot"):
        model.quantize("int8")
    assert structure_of(model) == before
    kr.merge_randlora(model)
    model.quantize("int8")
    assert model.get_layer("hidden_1").quantization_mode == "int8"
