"""Adapting a live model: enable, train, merge, disable, and the two blocks."""

import re
import types
import warnings

import keras
import numpy as np
import pytest
import reference
from backend import assert_same_arrays
from drawn import draw_a, draw_b
from keras import layers, ops
from models import (
    EXAMPLES,
    attention,
    compile_model,
    counting,
    layers_of,
    mlp,
    nested,
    randomize,
    structure_of,
    values_of,
)
from versions import PASSED_BY

import keras_randlora as kr
from keras_randlora.bases import scale_of
from keras_randlora.files.adapter_file import read_adapter, write_adapter
from keras_randlora.layers.adapted import RandLoRALayer

BACKEND = keras.backend.backend()
TRACED = BACKEND != "torch"
PLAIN_KINDS = {layers.Dense, layers.EinsumDense}


def weights_by_path(model):
    """Return the variables that the model has now, by path and order."""
    return {f"{i} {v.path}": v for i, v in enumerate(model.weights)}


def read(variables):
    """Return copies of variables as arrays."""
    return {key: np.array(ops.convert_to_numpy(v)) for key, v in variables.items()}


def changes(variables, before):
    """Return the keys of the variables whose bits differ from `before`."""
    now = read(variables)
    return [key for key in before if now[key].tobytes() != before[key].tobytes()]


def adapted_mlp(**options):
    """Return an adapted MLP with a random update, and its example."""
    example = EXAMPLES["mlp"]
    model = example.build()
    kr.enable_randlora(model, **{"rank": 2, "targets": "all-linear", **options})
    randomize(model)
    return model, example


def freeze_first(model):
    """Freeze the first layer that has weights and is no model."""
    first = next(
        layer
        for layer in layers_of(model)
        if layer.weights and not isinstance(layer, keras.Model)
    )
    first.trainable = False


# One life of each model: enabled, trained, merged for a while, off for a while,
# disabled, enabled again with the same adapter, merged.


def live(example):
    """Lead a model through its life and return what was seen."""
    seen = types.SimpleNamespace(example=example)
    model = example.build()
    freeze_first(model)
    compile_model(model)
    base = weights_by_path(model)
    seen.plain = structure_of(model)
    seen.plain_outputs = example.outputs(model)
    before = read(base)

    seen.report = kr.enable_randlora(model, rank=3, targets=example.targets)
    seen.enabled_outputs = example.outputs(model)
    seen.trainable = [v.path.split("/")[-2:] for v in model.trainable_variables]
    example.fit(model)
    seen.changed = changes(base, before)
    seen.adapter = kr.get_adapter(model)
    seen.fitted_outputs = example.outputs(model)

    with kr.merged(model):
        seen.merged_kinds = {type(layer) for layer in layers_of(model)}
        seen.merged_outputs = example.outputs(model)
    seen.after_merged = changes(base, before), example.outputs(model)
    with kr.base_only(model):
        seen.base_only_outputs = example.outputs(model)
    seen.after_base_only = example.outputs(model)

    kr.disable_randlora(model)
    seen.disabled = structure_of(model)
    seen.disabled_outputs = example.outputs(model)
    kr.enable_randlora(model, rank=3, targets=example.targets)
    kr.set_adapter(model, seen.adapter)
    seen.again_outputs = example.outputs(model)
    kr.merge_randlora(model)
    seen.final = structure_of(model)
    seen.final_outputs = example.outputs(model)
    seen.merged_kernels = changes(base, before)
    return seen


@pytest.fixture(scope="module", params=EXAMPLES)
def life(request):
    return live(EXAMPLES[request.param])


def test_the_expected_layers_are_adapted(life):
    assert len(life.report.layers) == life.example.adapted


def test_outputs_at_step_zero_are_those_of_the_base(life):
    assert np.array_equal(life.enabled_outputs, life.plain_outputs)


def test_only_the_adapter_is_trainable(life):
    assert (
        life.trainable
        == [["randlora", "lambda"], ["randlora", "gamma"]] * life.example.adapted
    )


def test_training_changes_the_adapter_and_nothing_else(life):
    assert life.changed == []
    for path, array in life.adapter.items():
        start = 0.0 if path.endswith("/lambda") else np.float32(1 / array.shape[1])
        assert np.any(array != start), path
    assert np.max(np.abs(life.fitted_outputs - life.plain_outputs)) > 1e-3


def test_merged_for_a_while(life):
    assert not any(issubclass(kind, RandLoRALayer) for kind in life.merged_kinds)
    np.testing.assert_allclose(life.merged_outputs, life.fitted_outputs, atol=1e-4)
    changed, outputs = life.after_merged
    assert changed == []
    assert np.array_equal(outputs, life.fitted_outputs)


def test_off_for_a_while(life):
    assert np.array_equal(life.base_only_outputs, life.plain_outputs)
    assert np.array_equal(life.after_base_only, life.fitted_outputs)


def test_disabling_restores_the_model(life):
    assert life.disabled == life.plain
    assert np.array_equal(life.disabled_outputs, life.plain_outputs)


def test_setting_the_adapter_brings_the_outputs_back(life):
    assert np.array_equal(life.again_outputs, life.fitted_outputs)


def test_merging_leaves_a_plain_model_with_the_same_outputs(life):
    np.testing.assert_allclose(life.final_outputs, life.fitted_outputs, atol=1e-4)
    assert life.final == life.plain
    assert len(life.merged_kernels) == life.example.adapted
    assert all(key.endswith("/kernel") for key in life.merged_kernels)


# What is trained beside λ and γ

TRAINED = {
    "nothing": ({}, []),
    "biases of adapted layers": (dict(train_bias="adapted"), ["dense/bias"]),
    "all biases": (dict(train_bias="all"), ["conv/bias", "dense/bias", "head/bias"]),
    "the head": (dict(also_train="head"), ["head/bias", "head/kernel"]),
    "the norm and its statistics": (
        dict(also_train="batch_norm"),
        [
            "batch_norm/beta",
            "batch_norm/gamma",
            "batch_norm/moving_mean",
            "batch_norm/moving_variance",
        ],
    ),
    "both": (
        dict(also_train=["conv"], train_bias="adapted"),
        ["conv/bias", "conv/kernel", "dense/bias"],
    ),
}


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_trained_beside_the_adapter(name):
    options, expected = TRAINED[name]
    example = EXAMPLES["cnn"]
    model = example.build()
    variables = {v.path: v for v in model.weights}
    before, structure = read(variables), structure_of(model)
    kr.enable_randlora(model, rank=2, targets="dense", **options)
    trainable = sorted(v.path for v in model.trainable_weights)
    statistics = ("batch_norm/moving_mean", "batch_norm/moving_variance")
    assert trainable == sorted(
        {*expected, "dense/randlora/gamma", "dense/randlora/lambda"} - {*statistics}
    )
    example.fit(model)
    assert sorted(changes(variables, before)) == expected
    kr.disable_randlora(model)
    assert sorted(changes(variables, before)) == expected
    assert structure_of(model)["layers"] == structure["layers"]
    assert structure_of(model)["weights"] == structure["weights"]


def test_a_container_is_trained_with_the_layers_inside():
    model = attention()
    kr.enable_randlora(model, rank=2, targets="classifier", also_train="mixer")
    beside = [v.path for v in model.trainable_weights if "randlora" not in v.path]
    assert beside == [
        f"mixer/{name}/{kind}"
        for name in ("query", "key", "value", "attention_output")
        for kind in ("kernel", "bias")
    ]


class Scales(layers.Layer):
    """A layer of weights without a name, and of two with the same one."""

    def build(self, input_shape):
        shapes = [(6,), (1, 6), (6,), (1, 6)]
        names = [None, None, "scale", "scale"]
        self.own = [
            self.add_weight(shape=shape, name=name, initializer="ones")
            for shape, name in zip(shapes, names, strict=True)
        ]

    def call(self, inputs):
        for weight in self.own:
            inputs = inputs * weight
        return inputs


def scaled():
    """Return a new model with such a layer, whose weights Keras numbers on."""
    inputs = keras.Input((6,))
    hidden = layers.Dense(6, name="dense")(inputs)
    return keras.Model(inputs, Scales(name="scales")(hidden))


def test_weights_of_the_same_name_and_of_none(tmp_path):
    model = scaled()
    kr.enable_randlora(model, rank=2, targets="dense", also_train="scales")
    assert len([v for v in model.trainable_weights if "scales" in v.path]) == 4
    state = randomize(model)
    names = ["scale", "scale#2", "variable", "variable#2"]
    assert [path for path in sorted(state) if "scales" in path] == [
        f"scales/{name}" for name in names
    ]
    kr.save_adapter(model, tmp_path / "adapter.safetensors")
    other = scaled()
    kr.load_adapter(other, tmp_path / "adapter.safetensors")
    assert_same_arrays(kr.get_adapter(other), state)
    # Version 1.0 wrote the numbers that Keras gave.
    file = read_adapter(tmp_path / "adapter.safetensors")
    former = dict(file.tensors)
    for number, name in ((9, "variable"), (10, "variable#2")):
        former[f"scales/variable_{number}"] = former.pop(f"scales/{name}")
    write_adapter(file._replace(tensors=former), tmp_path / "former.safetensors")
    again = read_adapter(tmp_path / "former.safetensors").tensors
    assert_same_arrays(again, state, ordered=False)


@PASSED_BY
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_a_quantized_layer_is_not_trained_as_it_is(mode):
    model = mlp()
    model.quantize(mode)
    before = structure_of(model)
    message = f"Layer 'head' is in `also_train` and quantized as '{mode}'"
    with pytest.raises(ValueError, match=message):
        kr.enable_randlora(model, rank=2, targets="hidden_1", also_train="head")
    assert structure_of(model) == before


# Options

OPTIONS = {
    "rank above the smaller side": (dict(rank=9), [(9, 1), (1, 6)]),
    "rank equal to the smaller side": (dict(rank=6), [(6, 1), (1, 6)]),
    "rank not dividing the smaller side": (dict(rank=4), [(4, 2), (2, 6)]),
    "rank one": (dict(rank=1), [(1, 6), (6, 6)]),
    "one basis": (dict(num_bases=1), [(2, 1), (1, 6)]),
    "more bases than are needed": (dict(num_bases=99), [(2, 3), (3, 6)]),
    "normal": (dict(basis="normal"), [(2, 3), (3, 6)]),
    "binary": (dict(basis="binary"), [(2, 3), (3, 6)]),
    "sparse": (dict(basis="sparse"), [(2, 3), (3, 6)]),
    "very sparse": (dict(basis="very_sparse"), [(2, 3), (3, 6)]),
    "ternary": (dict(basis="ternary", sparsity=3), [(2, 3), (3, 6)]),
    "small alpha": (dict(alpha=2), [(2, 3), (3, 6)]),
    "regenerated": (dict(basis_storage="regenerated"), [(2, 3), (3, 6)]),
    "regenerated sparse": (
        dict(basis_storage="regenerated", basis="sparse"),
        [(2, 3), (3, 6)],
    ),
    "materialized": (dict(compute="materialized"), [(2, 3), (3, 6)]),
    "factored": (dict(compute="factored"), [(2, 3), (3, 6)]),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    options, shapes = OPTIONS[name]
    example = EXAMPLES["mlp"]
    model = example.build()
    plain = example.outputs(model)
    kernel = model.get_layer("hidden_1").kernel
    base = np.array(ops.convert_to_numpy(kernel))
    kr.enable_randlora(model, **{"rank": 2, "targets": "all-linear", **options})
    assert np.array_equal(example.outputs(model), plain)
    assert [a.shape for a in kr.get_adapter(model).values()][:2] == shapes
    adapter = randomize(model)
    scale = 1.0 if name == "small alpha" else 20.0
    bank = model.get_layer("hidden_1").bank
    unit = scale_of(bank.spec)
    drawn = (
        draw_a(bank.spec, *shapes[0][:1], 6),
        draw_b(bank.spec, 10, shapes[0][0] * shapes[0][1]),
    )
    factors = reference.Factors(
        adapter["hidden_1/lambda"],
        adapter["hidden_1/gamma"],
        *(unit * basis.astype("float64") for basis in drawn),
    )
    outputs = example.outputs(model)
    assert np.max(np.abs(outputs - plain)) > 1e-3
    kr.merge_randlora(model)
    expected = base + reference.kernel_update(6, 10, factors, scale)
    np.testing.assert_allclose(ops.convert_to_numpy(kernel), expected, atol=1e-5)
    np.testing.assert_allclose(example.outputs(model), outputs, atol=1e-4)


def test_every_way_to_store_and_compute_gives_the_same_outputs():
    model, example = adapted_mlp()
    adapter, expected = kr.get_adapter(model), example.outputs(model)
    for options in (
        dict(basis_storage="regenerated"),
        dict(compute="materialized"),
        dict(compute="factored"),
        dict(basis_storage="regenerated", compute="factored", dropout=0.5),
    ):
        kr.disable_randlora(model)
        kr.enable_randlora(model, rank=2, targets="all-linear", **options)
        kr.set_adapter(model, adapter)
        np.testing.assert_allclose(example.outputs(model), expected, atol=1e-5)


def test_another_seed_is_another_update():
    model, example = adapted_mlp()
    adapter, outputs = kr.get_adapter(model), example.outputs(model)
    kr.disable_randlora(model)
    kr.enable_randlora(model, rank=2, targets="all-linear", seed=1)
    kr.set_adapter(model, adapter)
    assert np.max(np.abs(example.outputs(model) - outputs)) > 1e-3


def test_regenerated_bases_have_no_weights():
    stored, _ = adapted_mlp()
    regenerated, _ = adapted_mlp(basis_storage="regenerated")
    assert len(stored.weights) == len(regenerated.weights) + 2


def test_dropout_acts_in_training_only():
    model, example = adapted_mlp(dropout=0.5)
    adapter = kr.get_adapter(model)
    inputs = example.inputs()
    assert np.array_equal(example.outputs(model), example.outputs(model))
    noisy = [ops.convert_to_numpy(model(inputs, training=True)) for _ in range(2)]
    assert np.max(np.abs(noisy[0] - noisy[1])) > 1e-3
    example.fit(model)
    trained = kr.get_adapter(model)
    assert all(np.any(trained[path] != adapter[path]) for path in adapter)


def test_dropout_leaves_the_base_alone():
    example = EXAMPLES["mlp"]
    model = example.build()
    plain = example.outputs(model)
    kr.enable_randlora(model, rank=2, targets="all-linear", dropout=0.5)
    outputs = model(example.inputs(), training=True)
    assert np.array_equal(ops.convert_to_numpy(outputs), plain)


def test_a_layer_used_twice_is_updated_in_both_places():
    example = EXAMPLES["shared"]
    model = example.build()
    kr.enable_randlora(model, rank=2, targets="twice")
    state = randomize(model)
    assert len(state) == 2
    twice, head = model.get_layer("twice"), model.get_layer("head")
    x = np.array(example.inputs())
    for _ in range(2):
        x = np.tanh(x @ ops.convert_to_numpy(twice.merged_kernel()) + twice.bias)
    expected = x @ ops.convert_to_numpy(head.kernel) + head.bias
    np.testing.assert_allclose(example.outputs(model), expected, atol=1e-5)


# Compiled models


def test_predict_sees_every_state_of_the_model():
    model, _ = counting()
    inputs = EXAMPLES["mlp"].inputs()

    def predict():
        return model.predict(inputs, verbose=0)

    # A TensorFlow graph fuses product, bias and activation of plain layers only.
    rounding = 1e-6 if BACKEND == "tensorflow" else 0.0
    plain = predict()
    kr.enable_randlora(model, rank=2, targets="all-linear")
    np.testing.assert_allclose(predict(), plain, rtol=0, atol=rounding)
    randomize(model)
    adapted = predict()
    assert np.max(np.abs(adapted - plain)) > 1e-3
    with kr.merged(model):
        np.testing.assert_allclose(predict(), adapted, atol=1e-4)
    assert np.array_equal(predict(), adapted)
    with kr.base_only(model):
        np.testing.assert_allclose(predict(), plain, rtol=0, atol=rounding)
    assert np.array_equal(predict(), adapted)
    kr.disable_randlora(model)
    assert np.array_equal(predict(), plain)


def test_the_blocks_trace_nothing_anew():
    model, counter = counting()
    example = EXAMPLES["mlp"]
    kr.enable_randlora(model, rank=2, targets="all-linear")

    def predict():
        model.predict(example.inputs(), verbose=0)

    def fit():
        example.fit(model, steps=1)

    once = counter.during(predict), counter.during(fit)
    assert min(once) > 0
    again = counter.during(predict), counter.during(fit)
    assert again == ((0, 0) if TRACED else (1, 1))
    for _ in range(2):
        with kr.base_only(model):
            if TRACED:  # JAX compiles what runs without the adapters once
                predict()
            assert counter.during(predict) == again[0]
    with kr.merged(model):
        predict()
    assert (counter.during(predict), counter.during(fit)) == again


def test_generate():
    example = EXAMPLES["llama3"]
    model = example.build()
    model.compile(sampler="greedy")
    prompt = {
        "token_ids": example.inputs()["token_ids"],
        "padding_mask": np.tile([1, 1, 0, 0, 0, 0], (4, 1)).astype("int32"),
    }

    def generate():
        output = model.generate(prompt, stop_token_ids=None)
        return np.array(output["token_ids"])

    plain = generate()
    kr.enable_randlora(model, rank=3)
    assert np.array_equal(generate(), plain)
    randomize(model)
    adapted = generate()
    assert np.any(adapted != plain)
    with kr.base_only(model):
        assert np.array_equal(generate(), plain)
    kr.merge_randlora(model)
    assert np.array_equal(generate(), adapted)


def test_a_model_fitted_before_must_be_compiled_again():
    example = EXAMPLES["mlp"]
    model = example.build()
    example.fit(model)
    message = "Model 'mlp' was compiled with an optimizer that holds state for the "
    with pytest.warns(UserWarning, match=message) as caught:
        model.enable_randlora(rank=2, targets="all-linear")
    assert caught[0].filename == __file__
    with pytest.raises(ValueError, match=r"call `compile\(\)`"):
        model.fit(example.inputs(), example.labels(), verbose=0)
    before = values_of(model)
    compile_model(model)
    example.fit(model)
    changed = [key for key, value in values_of(model).items() if value != before[key]]
    assert len(changed) == 6
    assert all("/randlora/" in key for key in changed)


@pytest.mark.parametrize("leave", [kr.disable_randlora, kr.merge_randlora])
def test_a_model_fitted_while_adapted_stays_compiled(leave):
    example = EXAMPLES["mlp"]
    model = example.build()
    compile_model(model, learning_rate=0.125)
    kr.enable_randlora(model, rank=2, targets="all-linear")
    example.fit(model)
    leave(model)
    before = values_of(model)
    model.evaluate(example.inputs(), example.labels(), verbose=0)
    assert values_of(model) == before
    example.fit(model)
    assert all(value != before[key] for key, value in values_of(model).items())
    assert float(ops.convert_to_numpy(model.optimizer.learning_rate)) == 0.125


def test_a_model_never_fitted_stays_compiled():
    example = EXAMPLES["mlp"]
    model = example.build()
    compile_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kr.enable_randlora(model, rank=2, targets="all-linear")
        assert model.compiled
        kr.disable_randlora(model)
        assert model.compiled


@pytest.mark.filterwarnings("ignore:.* adapter file does not hold:UserWarning")
def test_thawing_the_model_later_leaves_the_kernels_frozen():
    example = EXAMPLES["mlp"]
    model = example.build()
    kr.enable_randlora(model, rank=2, targets=["hidden_1", "hidden_2"])
    model.trainable = False
    assert model.trainable_weights == []
    model.trainable = True
    trainable = [v.path for v in model.trainable_weights]
    assert sorted(trainable) == [
        "head/bias",
        "head/kernel",
        "hidden_1/randlora/gamma",
        "hidden_1/randlora/lambda",
        "hidden_2/randlora/gamma",
        "hidden_2/randlora/lambda",
    ]
    frozen = {v.path: v for v in model.weights if v.path.startswith("hidden")}
    frozen = {path: v for path, v in frozen.items() if "randlora" not in path}
    before = read(frozen)
    example.fit(model)
    assert changes(frozen, before) == []


# Blocks


@pytest.mark.parametrize("block", [kr.merged, kr.base_only])
def test_an_exception_in_a_block_restores_the_model(block):
    model, example = adapted_mlp()
    before = structure_of(model), values_of(model)
    outputs = example.outputs(model)
    with pytest.raises(RuntimeError, match="inside"), block(model):
        raise RuntimeError("inside")
    assert (structure_of(model), values_of(model)) == before
    assert np.array_equal(example.outputs(model), outputs)
    with block(model):
        pass


@pytest.mark.parametrize("block", [kr.merged, kr.base_only])
@pytest.mark.parametrize(
    "call",
    [
        kr.disable_randlora,
        kr.merge_randlora,
        kr.get_adapter,
        lambda model: kr.set_adapter(model, {}),
        lambda model: kr.save_adapter(model, "never.safetensors"),
        lambda model: kr.merged(model).__enter__(),
        lambda model: kr.base_only(model).__enter__(),
    ],
    ids=["disable", "merge", "get", "set", "save", "merged", "base_only"],
)
def test_inside_a_block_the_adapter_is_out_of_reach(block, call):
    model, _ = adapted_mlp()
    before = structure_of(model), values_of(model)
    message = (
        f"Model 'mlp' is inside a `{block.__name__}(model)` block. Leave the block "
        "first."
    )
    with block(model):
        inside = structure_of(model), values_of(model)
        with pytest.raises(ValueError, match=re.escape(message)):
            call(model)
        assert (structure_of(model), values_of(model)) == inside
    assert (structure_of(model), values_of(model)) == before


@pytest.mark.parametrize("block", [kr.merged, kr.base_only])
def test_inside_a_block_enabling_is_refused(block):
    model, _ = adapted_mlp()
    with block(model), pytest.raises(ValueError, match="is already adapted by Rand"):
        kr.enable_randlora(model, rank=2, targets="all-linear")


def test_a_block_gives_the_model():
    model, _ = adapted_mlp()
    with kr.merged(model) as merged:
        assert merged is model
    with kr.base_only(model) as base:
        assert base is model


# Refusals

NOT_ADAPTED = (
    "Model 'mlp' is not adapted by RandLoRA. Call `enable_randlora(model, ...)` first."
)


@pytest.mark.parametrize(
    "call",
    [
        kr.disable_randlora,
        kr.merge_randlora,
        kr.get_adapter,
        lambda model: kr.set_adapter(model, {}),
        lambda model: kr.save_adapter(model, "never.safetensors"),
        lambda model: kr.merged(model).__enter__(),
        lambda model: kr.base_only(model).__enter__(),
    ],
    ids=["disable", "merge", "get", "set", "save", "merged", "base_only"],
)
def test_a_plain_model_is_refused(call):
    model = mlp()
    before = structure_of(model), values_of(model)
    with pytest.raises(ValueError, match=re.escape(NOT_ADAPTED)):
        call(model)
    assert (structure_of(model), values_of(model)) == before
    with pytest.raises(TypeError, match="RandLoRA adapts a `keras.Model`. Received: 3"):
        call(3)


@pytest.mark.parametrize("leave", [kr.disable_randlora, kr.merge_randlora])
def test_leaving_twice_is_refused(leave):
    model, _ = adapted_mlp()
    leave(model)
    with pytest.raises(ValueError, match=re.escape(NOT_ADAPTED)):
        leave(model)


def test_enabling_twice_is_refused():
    model, _ = adapted_mlp()
    before = structure_of(model), values_of(model)
    message = (
        "Model 'mlp' is already adapted by RandLoRA. Layer 'hidden_1' is. Call "
        "`disable_randlora(model)` or `merge_randlora(model)` first."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        kr.enable_randlora(model, rank=4, targets="head")
    assert (structure_of(model), values_of(model)) == before


def test_a_model_around_an_adapted_one_is_not_adapted_again():
    outer = nested()
    inner = outer.get_layer("mlp")
    kr.enable_randlora(inner, rank=2, targets="hidden_2")
    before = structure_of(outer), values_of(outer)
    message = "Model 'nested' is already adapted by RandLoRA. Layer 'hidden_2' is."
    with pytest.raises(ValueError, match=re.escape(message)):
        kr.enable_randlora(outer, rank=2, targets="head")
    assert (structure_of(outer), values_of(outer)) == before


def test_a_model_around_an_adapted_one_is_adapted_as_a_whole():
    outer = nested()
    flags = [variable.trainable for variable in outer.variables]
    inner = outer.get_layer("mlp")
    kr.enable_randlora(inner, rank=2, targets="hidden_2")
    assert sorted(kr.get_adapter(outer)) == [
        "head#2/bias",
        "head#2/kernel",
        "hidden_2/gamma",
        "hidden_2/lambda",
    ]
    kr.disable_randlora(outer)
    assert [variable.trainable for variable in outer.variables] == flags
    with pytest.raises(ValueError, match="is not adapted by RandLoRA"):
        kr.get_adapter(inner)


def test_a_model_inside_an_adapted_one_is_refused():
    outer = nested()
    inner = outer.get_layer("mlp")
    kr.enable_randlora(outer, rank=2, targets="hidden_2")
    with pytest.raises(ValueError, match="'hidden_2' of model 'mlp' is adapted, but"):
        kr.merge_randlora(inner)
    with pytest.raises(ValueError, match="Model 'mlp' is already adapted by RandLoRA"):
        kr.enable_randlora(inner, rank=2, targets="head")


def test_an_adapted_layer_takes_no_other_adapter():
    model, _ = adapted_mlp()
    layer = model.get_layer("hidden_1")
    with pytest.raises(
        ValueError, match="'hidden_1' is adapted by RandLoRA and cannot"
    ):
        layer.enable_lora(2)
    with pytest.raises(
        ValueError, match="'hidden_1' is adapted by RandLoRA and cannot"
    ):
        layer.quantize("int8")


# The rest


def test_the_methods_of_models_are_the_functions():
    assert keras.Model.enable_randlora is kr.enable_randlora
    assert keras.Model.disable_randlora is kr.disable_randlora
    assert keras.Model.merge_randlora is kr.merge_randlora
    assert keras.Model.save_randlora is kr.save_adapter
    assert keras.Model.load_randlora is kr.load_adapter
    assert keras.Model.randlora_summary is kr.summary


def test_the_methods_of_models():
    model = mlp()
    report = model.enable_randlora(rank=2, targets=["head"])
    assert report == model.randlora_summary()
    model.merge_randlora()
    assert {type(layer) for layer in model.layers} & PLAIN_KINDS == {layers.Dense}
    with pytest.raises(TypeError, match="positional"):
        model.enable_randlora(2, "head", 40)


@pytest.mark.parametrize("name", ["mlp", "attention", "subclassed"])
def test_cycles_leave_nothing_behind(name):
    example = EXAMPLES[name]
    model = example.build()
    before = structure_of(model), values_of(model), sorted(vars(model))
    for rank in (2, 5):
        kr.enable_randlora(model, rank, example.targets, dropout=0.1)
        randomize(model)
        kr.disable_randlora(model)
        assert (structure_of(model), values_of(model)) == before[:2]
        assert sorted(vars(model)) == before[2]


def assert_torch_parameters(model):
    """Assert that the parameters of every module are its variables."""
    for layer in layers_of(model):
        parameters = dict(layer.named_parameters(remove_duplicate=False)).values()
        assert {id(p) for p in parameters} >= {id(v.value) for v in layer.variables}
    assert {id(p) for p in model.parameters()} == {id(v.value) for v in model.variables}
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(v.value) for v in model.trainable_variables
    }


@pytest.mark.skipif(BACKEND != "torch", reason="parameters exist on torch only")
@pytest.mark.parametrize("name", ["mlp", "attention", "subclassed", "llama3"])
def test_the_parameters_on_torch_are_the_variables(name):
    example = EXAMPLES[name]
    model = example.build()
    kr.enable_randlora(model, rank=2, targets=example.targets, dropout=0.1)
    assert_torch_parameters(model)
    with kr.merged(model):
        assert_torch_parameters(model)
    assert_torch_parameters(model)
    kr.disable_randlora(model)
    assert_torch_parameters(model)
