"""What Keras saves of an adapted model: it opens without this package, or adapted."""

import artefacts
import keras
import numpy as np
import pytest
from models import EXAMPLES
from versions import KERAS_HUB, NEEDS_PRESETS_ALONE

import keras_randlora as kr

HUB = {"llama3": "CausalLM", "bert": "TextClassifier", "vit": "ImageClassifier"}
WAYS = {"keras": (), "preset": NEEDS_PRESETS_ALONE}
pytestmark = [pytest.mark.long_setup, pytest.mark.usefixtures("quick_processes")]
POSSIBLE = list(WAYS) if KERAS_HUB >= (0, 30) else ["keras"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Save three adapted models in two ways, and open them in one plain process."""
    folder = tmp_path_factory.mktemp("plain")
    expected, requests = {}, []
    for name, kind in HUB.items():
        model = artefacts.adapted(name)
        model.save(folder / f"{name}.keras")
        if "preset" in POSSIBLE:
            model.save_to_preset(str(folder / name))
        expected[name] = [artefacts.outputs(model, b) for b in artefacts.batches(name)]
        requests.append((name, "keras", folder / f"{name}.keras"))
        if "preset" in POSSIBLE:
            requests.append((name, "preset", folder / name, kind))
    results = artefacts.run(folder, requests)
    keys = [(name, way) for name in HUB for way in POSSIBLE]
    return expected, dict(zip(keys, results, strict=True))


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=marks) for way, marks in WAYS.items()]
)
@pytest.mark.parametrize("name", HUB)
def test_opens_without_the_package(plain, name, way):
    expected, results = plain
    facts, outputs = results[name, way]
    assert facts["stored"] == EXAMPLES[name].build().count_params()
    untrained = [
        artefacts.outputs(EXAMPLES[name].build(), b) for b in artefacts.batches(name)
    ]
    for actual, wanted, base in zip(outputs, expected[name], untrained, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-4)
        assert np.abs(wanted - base).max() > 1e-3


def randlora_model():
    """Return a functional model with layers of the package."""
    inputs = keras.Input((6,))
    x = kr.RandLoRADense(10, rank=3, activation="tanh", name="hidden")(inputs)
    x = keras.layers.Reshape((2, 5), name="reshape")(x)
    x = kr.RandLoRAEinsumDense("abc,cde->abde", (2, 2, 2), rank=2, name="ein")(x)
    outputs = kr.RandLoRADense(3, rank=2, name="head")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(3)
    for weight in model.trainable_weights:
        weight.assign(weight + 0.05 * rng.standard_normal(weight.shape))
    return model


def test_functional_model_comes_back_adapted(tmp_path):
    model = randlora_model()
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert [type(x) for x in loaded.layers] == [type(x) for x in model.layers]
    paths = {"lambda", "gamma"}
    ours = [w for w in model.weights if w.name in paths]
    theirs = [w for w in loaded.weights if w.name in paths]
    assert len(ours) == 6
    for one, other in zip(ours, theirs, strict=True):
        assert one.path == other.path and other.trainable
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (one, other)))
    (batch, _) = artefacts.batches("mlp")
    np.testing.assert_allclose(
        artefacts.outputs(loaded, batch), artefacts.outputs(model, batch), atol=1e-6
    )


def test_adapted_functional_model_comes_back_adapted(tmp_path):
    model = artefacts.adapted("mlp")
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", compile=False)
    kinds = [type(layer) for layer in loaded.layers[1:]]
    assert kinds == [kr.RandLoRADense] * 3
    (batch, _) = artefacts.batches("mlp")
    np.testing.assert_allclose(
        artefacts.outputs(loaded, batch), artefacts.outputs(model, batch), atol=1e-6
    )


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")
def test_weights_of_an_adapted_model_load_into_a_plain_one(name, tmp_path):
    model = artefacts.adapted(name)
    model.save_weights(tmp_path / "m.weights.h5")
    fresh = EXAMPLES[name].build()
    fresh.load_weights(tmp_path / "m.weights.h5")
    for batch in artefacts.batches(name):
        np.testing.assert_allclose(
            artefacts.outputs(fresh, batch), artefacts.outputs(model, batch), atol=1e-4
        )
