"""Files of every released version load and compute what they computed then."""

import json

import keras
import numpy as np
import pytest
import released_files
from public_api import RELEASED
from versions import since

import keras_randlora as kr

VERSIONS = sorted(path.parent.name for path in RELEASED.glob("*/outputs.json"))


@pytest.fixture(params=VERSIONS)
def release(request):
    """Give the folder of a version, and the outputs that were written with it."""
    folder = RELEASED / request.param
    expected = json.loads((folder / "outputs.json").read_text("utf-8"))
    return folder, {name: np.array(array) for name, array in expected.items()}


def assert_same(model, expected):
    np.testing.assert_allclose(released_files.outputs(model), expected, atol=1e-5)


def test_this_version_has_its_files():
    assert kr.__version__ in VERSIONS, "python tests/released_files.py"


def test_adapters(release):
    folder, expected = release
    untrained = released_files.outputs(released_files.plain())
    for name in (*released_files.ADAPTERS, "given"):
        model = released_files.plain()
        kr.load_adapter(model, folder / f"{name}.safetensors")
        assert_same(model, expected[name])
        assert np.abs(expected[name] - untrained).max() > 0.01


@since((3, 15), "The configuration of initializers in the saved models")
def test_whole_models_and_weights(release):
    folder, expected = release
    assert_same(keras.saving.load_model(folder / "model.keras"), expected["uniform"])
    model = released_files.plain()
    kr.enable_randlora(model, **released_files.ADAPTERS["uniform"])
    model.load_weights(folder / "model.weights.h5")
    assert_same(model, expected["uniform"])


def test_peft_folders(release):
    folder, expected = release
    model = released_files.plain()
    kr.peft.load(model, folder / "peft", name_map=released_files.PEFT_NAMES)
    assert_same(model, expected["peft"])


def test_training_goes_on(release):
    folder, expected = release
    model = released_files.plain()
    kr.load_adapter(model, folder / "fitted.safetensors")
    assert_same(model, expected["fitted"])
    model.compile(keras.optimizers.AdamW(1e-3), "mse")
    kr.load_optimizer(model, folder / "fitted.optimizer.safetensors")
    assert int(model.optimizer.iterations) == 2
