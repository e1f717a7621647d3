"""Models whose layers were built adapted: loaded, cloned, or made of them."""

import copy
import gc

import artefacts
import keras
import numpy as np
import pytest
from backend import as_numpy, assert_same_arrays
from keras import layers
from models import EXAMPLES, compile_model, moved_adapter
from peft_arrays import MLP_MODULES, MLP_NAMES, peft_arrays, write

import keras_randlora as kr

MLP = EXAMPLES["mlp"]
outputs = MLP.outputs


def loaded(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras", compile=False)


def cloned(model, folder):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def copied(model, folder):
    return copy.deepcopy(model)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture(params=[loaded, cloned, copied], ids=lambda way: way.__name__)
def pair(request, tmp_path):
    """Return an adapted model and one that Keras built like it."""
    model = artefacts.adapted("mlp")
    return model, request.param(model, tmp_path)


def test_it_is_adapted_and_saves_the_same_adapter(pair, tmp_path):
    model, other = pair
    path = tmp_path / "adapter.safetensors"
    kr.save_adapter(other, path)
    ours, theirs = kr.get_adapter(model), kr.get_adapter(other)
    assert_same_arrays(ours, theirs)
    tuned, fresh = outputs(model), MLP.build()
    kr.load_adapter(fresh, path)
    close(outputs(fresh), tuned)
    for changed in pair:
        kr.set_adapter(changed, moved_adapter(changed, 5))
        assert np.abs(outputs(changed) - tuned).max() > 1e-2
    for changed in pair:
        kr.load_adapter(changed, path)
        close(outputs(changed), tuned)


def test_it_is_merged_disabled_and_adapted_anew(pair):
    model, other = pair
    tuned, base = outputs(model), outputs(MLP.build())
    with kr.merged(other):
        assert type(other.get_layer("head")) is layers.Dense
        close(outputs(other), tuned)
    with kr.base_only(other):
        close(outputs(other), base)
    kr.merge_randlora(other)
    close(outputs(other), tuned)
    assert [type(layer) for layer in other.layers[1:]] == [layers.Dense] * 3
    assert len(other.trainable_weights) == 6
    assert kr.enable_randlora(other, rank=2, targets="all-linear").trainable
    kr.disable_randlora(other)
    close(outputs(other), tuned)


def test_it_is_exported_and_trained_further(pair, tmp_path):
    _, other = pair
    kr.export_merged(other, tmp_path / "merged.keras", "keras")
    merged = keras.saving.load_model(tmp_path / "merged.keras")
    assert type(merged.get_layer("head")) is layers.Dense
    close(outputs(merged), outputs(other))
    base = as_numpy(other.get_layer("head")._kernel)
    before = kr.get_adapter(other)
    compile_model(other)
    MLP.fit(other, steps=2)
    after = kr.get_adapter(other)
    assert all(np.abs(after[key] - before[key]).max() > 0 for key in before)
    np.testing.assert_array_equal(as_numpy(other.get_layer("head")._kernel), base)


@pytest.mark.parametrize("name", ["sequential", "shared", "nested", "attention", "cnn"])
def test_models_of_all_kinds(name, tmp_path):
    """Keras builds the children of its `MultiHeadAttention` plain, with the update."""
    model = artefacts.adapted(name)
    other, fresh = loaded(model, tmp_path), EXAMPLES[name].build()
    inputs, _ = artefacts.batches(name)
    expected = artefacts.outputs(model, inputs)
    kr.save_adapter(other, tmp_path / "a.safetensors")
    kr.load_adapter(fresh, tmp_path / "a.safetensors")
    kr.merge_randlora(other)
    for found in (other, fresh):
        close(artefacts.outputs(found, inputs), expected)
    with pytest.raises(ValueError, match="is not adapted"):
        kr.get_adapter(other)


@pytest.mark.parametrize(
    "options", [{"also_train": ["head"]}, {"train_bias": "adapted"}], ids=str
)
def test_what_is_trained_beside_is_saved_too(options, tmp_path):
    model = MLP.build()
    targets = ["hidden_1", "hidden_2"]
    kr.enable_randlora(model, rank=2, targets=targets, **options)
    compile_model(model)
    MLP.fit(model, steps=2)
    other = loaded(model, tmp_path)
    kr.save_adapter(other, tmp_path / "a.safetensors")
    fresh = MLP.build()
    kr.load_adapter(fresh, tmp_path / "a.safetensors")
    close(outputs(fresh), outputs(model))
    names = [weight.path for weight in model.trainable_weights]
    assert [weight.path for weight in fresh.trainable_weights] == names


def built_of(first, second):
    """Return a model of two layers that are made adapted, 6 to 4 to 3."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            kr.RandLoRADense(4, name="first", **first),
            kr.RandLoRADense(3, name="second", **second),
        ],
        name="made",
    )


def test_a_new_model_of_adapted_layers():
    model = built_of({"rank": 2}, {"rank": 2})
    kr.set_adapter(model, moved_adapter(model, 0))
    expected = outputs(model)
    parts = ("lambda", "gamma", "bias")
    names = {f"{name}/{part}" for name in ("first", "second") for part in parts}
    assert set(kr.get_adapter(model)) == names
    kr.merge_randlora(model)
    close(outputs(model), expected)


@pytest.mark.parametrize(
    "first, second, message",
    [
        ({"rank": 2}, {"rank": 3}, "'first' with rank=2, 'second' with rank=3"),
        ({"rank": 2}, {"rank": 2, "seed": 4}, "seed=0, 'second' with seed=4"),
        (
            {"rank": 2, "basis": "very_sparse"},
            {"rank": 2, "basis": "very_sparse"},
            "banks of bases",
        ),
    ],
)
def test_layers_that_no_adapter_describes(first, second, message, tmp_path):
    model = built_of(first, second)
    before = outputs(model)
    for call in (
        kr.merge_randlora,
        kr.get_adapter,
        lambda model: kr.save_adapter(model, tmp_path / "a.safetensors"),
    ):
        with pytest.raises(ValueError, match=message):
            call(model)
    np.testing.assert_array_equal(outputs(model), before)


def test_layers_with_the_given_bases_of_two_folders(tmp_path):
    donors = []
    for seed in (0, 1):
        folder = write(tmp_path / str(seed), peft_arrays(MLP_MODULES, seed=seed))
        donors.append(MLP.build())
        kr.peft.load(donors[-1], folder, name_map=MLP_NAMES)
    first, second = donors[0].get_layer("hidden_1"), donors[1].get_layer("hidden_2")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, second(first(inputs)))
    donors.clear()
    gc.collect()
    with pytest.raises(ValueError, match="banks of bases"):
        kr.get_adapter(model)


def test_a_model_that_is_not_built():
    model = keras.Sequential([kr.RandLoRADense(4, rank=2, name="first")])
    with pytest.raises(ValueError, match="not built yet: 'first' has no kernel"):
        kr.get_adapter(model)


def test_a_model_around_one_that_is_gone():
    inner = artefacts.adapted("mlp")
    outer = keras.Model(inner.input, layers.Dense(2, name="new")(inner.output))
    with pytest.raises(ValueError, match="called on another model"):
        kr.merge_randlora(outer)
    expected = outputs(outer)
    del inner
    gc.collect()
    assert {"new/kernel", "hidden_1/lambda"} <= set(kr.get_adapter(outer))
    kr.merge_randlora(outer)
    close(outputs(outer), expected)
