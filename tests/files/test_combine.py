"""Weighted sums of adapters, and switching between adapters in memory."""

import artefacts
import keras
import numpy as np
import pytest
from models import (
    EXAMPLES,
    compile_model,
    counting,
    moved_adapter,
    structure_of,
    update_by_formula,
    values_of,
)

import keras_randlora as kr

# Adapters of different rank, layers, seed and distribution, and one with a whole head.
OPTIONS = {
    "a": dict(rank=3, targets="all-linear", seed=1),
    "b": dict(rank=5, targets=["hidden_2"], seed=2, alpha=7.0, basis="binary"),
    "c": dict(rank=2, targets=["hidden_1"], seed=3, also_train=["head"]),
}
WEIGHTS = {"a": 0.7, "b": -1.5, "c": 0.3}


@pytest.fixture
def files(tmp_path):
    """Write the adapters; return their paths, and what each adds, in float64."""
    paths, changes = {}, {}
    for seed, (name, options) in enumerate(OPTIONS.items()):
        model = artefacts.adapted("mlp", seed, **options)
        paths[name] = tmp_path / f"{name}.safetensors"
        kr.save_adapter(model, paths[name])
        changes[name] = changes_of(model)
    return paths, changes


def changes_of(model):
    """Return what the adapter of a model adds to its weights, by the formula."""
    base = {w.path: as_float64(w) for w in EXAMPLES["mlp"].build().weights}
    changes = {}
    for layer in model.layers[1:]:
        if isinstance(layer, kr.RandLoRADense):
            changes[f"{layer.path}/kernel"] = update_by_formula(layer)
    for path, value in base.items():
        if path.startswith("head/") and "head/kernel" in kr.get_adapter(model):
            trained = {w.path: w for w in model.weights}[path]
            changes[path] = as_float64(trained) - value
    return changes


def as_float64(array):
    return np.array(keras.ops.convert_to_numpy(array)).astype("float64")


@pytest.mark.parametrize("names", ["a", "b", "ab", "abc", "cba"])
def test_weighted_sum(files, names):
    paths, changes = files
    model = EXAMPLES["mlp"].build()
    expected = {w.path: as_float64(w) for w in model.weights}
    untouched = {path: value.copy() for path, value in expected.items()}
    for name in names:
        for path, change in changes[name].items():
            expected[path] += WEIGHTS[name] * change
    plain = structure_of(model)
    kr.merge_adapters(model, {paths[name]: WEIGHTS[name] for name in names})
    assert structure_of(model) == plain
    for weight in model.weights:
        size = np.abs(expected[weight.path]).max()
        actual = as_float64(weight)
        np.testing.assert_allclose(actual, expected[weight.path], atol=1e-6 * size)
        moved = any(weight.path in changes[name] for name in names)
        assert moved != np.array_equal(actual, untouched[weight.path])


def test_one_adapter_equals_merge(files):
    paths, _ = files
    merged, adapted = EXAMPLES["mlp"].build(), EXAMPLES["mlp"].build()
    kr.merge_adapters(merged, {paths["c"]: 1.0})
    kr.load_adapter(adapted, paths["c"])
    kr.merge_randlora(adapted)
    for one, other in zip(merged.weights, adapted.weights, strict=True):
        np.testing.assert_allclose(as_float64(one), as_float64(other), atol=1e-6)


def test_a_compiled_model_trains_on_with_a_new_optimizer(files):
    paths, _ = files
    model = EXAMPLES["mlp"].build()
    compile_model(model, learning_rate=0.125)
    EXAMPLES["mlp"].fit(model)
    kr.merge_adapters(model, {paths["a"]: 1.0})
    assert model.compiled and not model.optimizer.built
    assert as_float64(model.optimizer.learning_rate) == 0.125
    EXAMPLES["mlp"].fit(model)


def test_einsum_kernels_of_a_keras_hub_model(tmp_path):
    model = artefacts.adapted("llama3")
    query = model.backbone.transformer_layers[0]._self_attention_layer._query_dense
    before, expected = as_float64(query._kernel), as_float64(query.merged_kernel())
    kr.save_adapter(model, tmp_path / "a.safetensors")
    plain = EXAMPLES["llama3"].build()
    kr.merge_adapters(plain, {tmp_path / "a.safetensors": 0.5})
    actual = plain.backbone.transformer_layers[0]._self_attention_layer._query_dense
    np.testing.assert_allclose(
        as_float64(actual.kernel), (before + expected) / 2, atol=1e-6
    )


def damaged(paths):
    paths["b"].write_bytes(paths["b"].read_bytes()[:-8])
    return {paths["a"]: 1.0, paths["b"]: 1.0}


REFUSALS = {
    "empty": (lambda paths: {}, ValueError, "`adapters` is empty"),
    "text": (lambda p: {p["a"]: 1, p["b"]: "1"}, TypeError, "weight of .*b.*number"),
    "nan": (lambda p: {p["a"]: 1, p["b"]: np.nan}, ValueError, "must be finite.*nan"),
    "missing": (lambda p: {p["a"]: 1, "no.safetensors": 1}, FileNotFoundError, "'no"),
    "damaged": (damaged, ValueError, "b.safetensors.*damaged"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_leave_the_model_as_it_was(files, name):
    make, error, message = REFUSALS[name]
    adapters = make(files[0])
    model = EXAMPLES["mlp"].build()
    before = structure_of(model), values_of(model)
    with pytest.raises(error, match=message):
        kr.merge_adapters(model, adapters)
    assert (structure_of(model), values_of(model)) == before


def test_another_model_is_refused(files):
    model = EXAMPLES["cnn"].build()
    before = structure_of(model), values_of(model)
    with pytest.raises(ValueError, match="made for another model.*'hidden_2'"):
        kr.merge_adapters(model, {files[0]["b"]: 1.0})
    assert (structure_of(model), values_of(model)) == before


def test_an_adapted_model_is_refused(files):
    model = artefacts.adapted("mlp")
    before = structure_of(model), values_of(model)
    with pytest.raises(ValueError, match="already adapted"):
        kr.merge_adapters(model, {files[0]["a"]: 1.0})
    assert (structure_of(model), values_of(model)) == before


def test_switching_between_two_adapters_needs_no_retrace():
    model, counter = counting()
    kr.enable_randlora(model, rank=2, targets="hidden")
    adapters = [moved_adapter(model, seed) for seed in (1, 2)]
    inputs = EXAMPLES["mlp"].inputs()
    outputs = []
    for adapter in adapters:
        kr.set_adapter(model, adapter)
        outputs.append(model.predict(inputs, verbose=0))
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    calls = counter.calls
    for adapter, expected in zip(adapters, outputs, strict=True):
        kr.set_adapter(model, adapter)
        np.testing.assert_array_equal(model.predict(inputs, verbose=0), expected)
    if keras.backend.backend() != "torch":  # which traces nothing
        assert counter.calls == calls
