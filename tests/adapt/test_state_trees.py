"""State trees and Orbax folders between plain and adapted models."""

import keras
import numpy as np
import pytest
from backend import as_numpy
from models import EXAMPLES, compile_model, random_adapter, randomize, values_of
from versions import KERAS, since

import keras_randlora as kr

MLP = EXAMPLES["mlp"]


def plain(scale=1.0):
    """Return a compiled model; a scale other than 1 makes another base of it."""
    model = MLP.build()
    model.set_weights([scale * weight for weight in model.get_weights()])
    compile_model(model, learning_rate=1e-3)
    return model


def adapted(scale=1.0, **options):
    model = plain(scale)
    kr.enable_randlora(model, **{"rank": 2, "targets": "all-linear", **options})
    return model


def tree_of(model):
    return model.get_state_tree(value_format="numpy_array")


def test_an_adapted_model_takes_a_plain_state_as_its_base():
    source, model = plain(1.5), adapted()
    MLP.fit(source)
    randomize(model)
    MLP.fit(model)
    steps = int(model.optimizer.iterations)
    model.set_state_tree({**tree_of(source), "optimizer_variables": {"adam": {}}})
    np.testing.assert_array_equal(MLP.outputs(model), MLP.outputs(source))
    with kr.base_only(model):
        np.testing.assert_array_equal(MLP.outputs(model), MLP.outputs(source))
    assert not any(np.any(a) for k, a in kr.get_adapter(model).items() if "lambda" in k)
    assert int(model.optimizer.iterations) == steps


def test_the_optimizer_of_a_plain_model_stays_there():
    source, model = plain(), adapted()
    MLP.fit(source, steps=3)
    model.set_state_tree(tree_of(source))
    assert int(model.optimizer.iterations) == 0


def test_a_plain_model_refuses_an_adapted_state():
    source, model = adapted(1.5), plain()
    before = values_of(model)
    with pytest.raises(ValueError, match="'hidden_1/randlora/lambda'.*'mlp' is plain"):
        model.set_state_tree(tree_of(source))
    assert values_of(model) == before


def test_adapted_models_exchange_states_whatever_is_frozen_in_one():
    source = adapted(1.5, also_train="head", targets="hidden*")
    randomize(source)
    MLP.fit(source)
    model = adapted(targets="hidden*")
    model.set_state_tree(tree_of(source))
    np.testing.assert_array_equal(MLP.outputs(model), MLP.outputs(source))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(targets="hidden*"), "lacks 'head/randlora/lambda' of model 'mlp'"),
        (dict(rank=1), r"of model 'mlp' has shape \(2, .\) here and \(1, .\)"),
        (dict(seed=9), "these are the values of other bases"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(options, message):
    source, model = adapted(1.5, **options), adapted()
    randomize(source)
    before = values_of(model)
    with pytest.raises(ValueError, match=message):
        model.set_state_tree(tree_of(source))
    assert values_of(model) == before


def test_a_plain_state_of_other_names_is_refused():
    tree = tree_of(plain(1.5))
    tree["trainable_variables"]["dense_7"] = tree["trainable_variables"].pop("head")
    model = adapted()
    before = values_of(model)
    with pytest.raises(ValueError, match="lacks 'head/kernel'"):
        model.set_state_tree(tree)
    assert values_of(model) == before


def test_a_part_of_a_state_sets_that_part_only():
    model = adapted()
    randomize(model)
    outputs, frozen = MLP.outputs(model), tree_of(model)["non_trainable_variables"]
    model.set_state_tree({"non_trainable_variables": frozen})
    np.testing.assert_array_equal(MLP.outputs(model), outputs)


def test_plain_models_are_left_to_keras():
    tree = tree_of(plain(1.5))
    tree["trainable_variables"].pop("head")
    model = plain()
    head = as_numpy(model.get_layer("head").kernel)
    model.set_state_tree(tree)
    np.testing.assert_array_equal(as_numpy(model.get_layer("head").kernel), head)
    with pytest.raises(ValueError, match="Unknown variable name"):
        model.set_state_tree({"weights": {}})


@pytest.mark.parametrize("prepared", [True, False])
def test_optimizers_and_generators_have_other_numbers(prepared):
    def trained_model():
        keras.utils.set_random_seed(3)
        inputs = keras.Input((6,))
        x = keras.layers.Dense(5, name="hidden")(inputs)
        x = keras.layers.Dropout(0.5, name="dropout")(x)
        model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x), name="mlp")
        model.enable_randlora(rank=2, targets="all-linear")
        model.compile(keras.optimizers.Adam(1e-2), "mse")
        return model

    source, model = trained_model(), trained_model()
    x, y = np.ones((4, 6), "float32"), np.ones((4, 3), "float32")
    source.fit(x, y, epochs=2, verbose=0)
    # Earlier optimizers have no numbers.
    assert (source.optimizer.name == model.optimizer.name) == (KERAS < (3, 15))
    if prepared:
        model.optimizer.build(model.trainable_variables)
    model.set_state_tree(tree_of(source))
    for ours, theirs in (
        (model.optimizer.variables, source.optimizer.variables),
        (model.non_trainable_variables, source.non_trainable_variables),
    ):
        assert len(ours) == len(theirs)
        for variable, saved in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(as_numpy(variable), as_numpy(saved))
    assert any(v.path.startswith("seed_generator") for v in model.variables)


@since((3, 14), "`OrbaxCheckpoint`")
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.filterwarnings("ignore:Use `metadata` instead")
def test_orbax_folders(tmp_path):
    pytest.importorskip("orbax.checkpoint")

    def folder_of(model, name):
        checkpoint = keras.callbacks.OrbaxCheckpoint(
            tmp_path / name, save_on_background=False
        )
        model.fit(MLP.inputs(), MLP.labels(), verbose=0, callbacks=[checkpoint])
        return tmp_path / name

    source, base = adapted(1.5), plain(2.0)
    kr.set_adapter(source, random_adapter(source))
    from_adapted, from_plain = folder_of(source, "a"), folder_of(base, "p")
    with pytest.raises(ValueError, match="'mlp' is plain"):
        plain().load_weights(from_adapted)
    for folder, expected in ((from_adapted, source), (from_plain, base)):
        model = adapted()
        model.load_weights(folder)
        np.testing.assert_array_equal(MLP.outputs(model), MLP.outputs(expected))
    opened = keras.models.load_model(from_adapted)
    assert len(kr.summary(opened).layers) == 3
    np.testing.assert_array_equal(MLP.outputs(opened), MLP.outputs(source))
