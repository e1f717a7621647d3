"""Ctrl-C in the middle of a verb, or memory that runs out: nothing is half changed."""

import numpy as np
import pytest
from keras import layers
from models import EXAMPLES, randomize, structure_of, values_of

import keras_randlora as kr
from keras_randlora.adapt import switch
from keras_randlora.adapt.state import adapted_state, is_adapted
from keras_randlora.files import combine
from keras_randlora.layers.adapted import RandLoRAAdapter, RandLoRALayer

EXAMPLE = EXAMPLES["mlp"]


def outputs_of(model):
    return model.predict(EXAMPLE.inputs(), verbose=0)


def tuned_mlp(targets="all-linear", **options):
    """Return an adapted model that is not its base."""
    model = EXAMPLE.build()
    kr.enable_randlora(model, rank=2, targets=targets, **options)
    randomize(model, seed=0)
    return model


def interrupted(monkeypatch, owner, name, at):
    """Let a method of a class be interrupted at its `at`-th call."""
    whole, calls = getattr(owner, name), []

    def method(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_while_adapting(monkeypatch, at):
    model = EXAMPLE.build()
    model.layers[-1].trainable = False
    before, base = values_of(model), outputs_of(model)
    trained = [weight.path for weight in model.trainable_weights]
    with monkeypatch.context() as patch:
        interrupted(patch, RandLoRALayer, "attach", at)
        with pytest.raises(KeyboardInterrupt):
            kr.enable_randlora(model, rank=2, targets="all-linear", train_bias="all")
    assert values_of(model) == before and not is_adapted(model)
    assert {type(layer) for layer in model.layers[1:]} == {layers.Dense}
    assert [weight.path for weight in model.trainable_weights] == trained
    np.testing.assert_array_equal(outputs_of(model), base)
    kr.enable_randlora(model, rank=2, targets="all-linear")
    np.testing.assert_array_equal(outputs_of(model), base)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_while_merging(monkeypatch, at, tmp_path):
    model = tuned_mlp()
    tuned = outputs_of(model)
    with monkeypatch.context() as patch:
        interrupted(patch, RandLoRALayer, "merged_kernel", at)
        with pytest.raises(KeyboardInterrupt):
            kr.merge_randlora(model)
    np.testing.assert_allclose(outputs_of(model), tuned, atol=1e-5)
    if at > 1:
        for verb in (kr.disable_randlora, kr.get_adapter):
            with pytest.raises(ValueError, match="'mlp' is merged in part"):
                verb(model)
    kr.merge_randlora(model)
    assert not is_adapted(model)
    assert {type(layer) for layer in model.layers[1:]} == {layers.Dense}
    np.testing.assert_allclose(outputs_of(model), tuned, atol=1e-5)


@pytest.mark.parametrize("name, at", [("merged_kernel", 2), ("detach", 2)])
def test_while_a_merged_block_begins(monkeypatch, name, at):
    model = tuned_mlp()
    before, tuned = values_of(model), outputs_of(model)
    with monkeypatch.context() as patch:
        interrupted(patch, RandLoRALayer, name, at)
        with pytest.raises(KeyboardInterrupt), kr.merged(model):
            raise AssertionError("not reached")
    assert values_of(model) == before
    np.testing.assert_array_equal(outputs_of(model), tuned)
    assert adapted_state(model).block is None


def test_while_a_base_only_block_begins(monkeypatch):
    model = tuned_mlp()
    before, tuned = values_of(model), outputs_of(model)
    with monkeypatch.context() as patch:
        interrupted(patch, switch, "traced_apart", 1)
        with pytest.raises(KeyboardInterrupt), kr.base_only(model):
            raise AssertionError("not reached")
    assert values_of(model) == before
    np.testing.assert_array_equal(outputs_of(model), tuned)


@pytest.mark.parametrize("factor", ["lambda_", "gamma"])
def test_what_is_not_finite_is_not_merged(factor, tmp_path):
    model = tuned_mlp()
    getattr(model.layers[2].randlora, factor).assign(
        np.full(getattr(model.layers[2].randlora, factor).shape, np.nan)
    )
    before = values_of(model)
    message = "The update of layer 'hidden_2' cannot be merged: λ or γ is not finite"
    with pytest.raises(ValueError, match=message):
        kr.merge_randlora(model)
    with pytest.raises(ValueError, match=message), kr.merged(model):
        pass
    with pytest.raises(ValueError, match=message):
        kr.export_merged(model, tmp_path / "merged.keras", "keras")
    assert values_of(model) == before and not list(tmp_path.iterdir())
    kr.disable_randlora(model)


@pytest.mark.parametrize(
    "owner, name, at",
    [(RandLoRAAdapter, "update", 4), (combine.Change, "add", 3)],
    ids=["reading the second", "writing the third variable"],
)
def test_while_adapters_are_merged(monkeypatch, tmp_path, owner, name, at):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seed, path in enumerate(paths):
        model = tuned_mlp(targets="hidden_*", seed=seed, also_train="head")
        kr.save_adapter(model, path)
    plain = EXAMPLE.build()
    before, base = structure_of(plain), values_of(plain)
    weights = dict.fromkeys(paths, 0.5)
    with monkeypatch.context() as patch:
        interrupted(patch, owner, name, at)
        with pytest.raises(KeyboardInterrupt):
            kr.merge_adapters(plain, weights)
    assert values_of(plain) == base and structure_of(plain) == before
    kr.merge_adapters(plain, weights)
    assert values_of(plain) != base
