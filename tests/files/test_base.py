"""The fingerprint of the base in an adapter file."""

import json

import keras
import numpy as np
import pytest
from keras import layers
from safetensors import safe_open

import keras_randlora as kr

# `pyproject.toml` lets these warnings pass elsewhere.
pytestmark = [
    pytest.mark.filterwarnings("error:The base of model"),
    # `pytest.warns` shows again what Keras's torch backend warns of.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def build(seed, dtype="float32"):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(32, name="a", dtype=dtype),
            layers.Dense(16, name="b", dtype=dtype),
        ],
        name="model",
    )


@pytest.fixture
def path(tmp_path):
    model = build(0)
    kr.enable_randlora(model, rank=2, targets="all-linear")
    kr.save_adapter(model, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def test_the_same_base_is_loaded_in_silence(path):
    model = build(0)
    kr.load_adapter(model, path)
    kr.load_adapter(model, path)


@pytest.mark.parametrize("adapted", [False, True])
def test_another_base_is_named(path, adapted):
    model = build(1)
    if adapted:
        kr.enable_randlora(model, rank=2, targets="all-linear")
    message = (
        "kernels of 2 of 2 adapted layers differ, first that of 'a'.*Sequential of"
    )
    with pytest.warns(UserWarning, match=message):
        kr.load_adapter(model, path)


def test_one_other_kernel_is_named(path):
    model = build(0)
    kernel = model.get_layer("b").kernel
    kernel.assign(np.asarray(keras.ops.convert_to_numpy(kernel)) * 1.001)
    with pytest.warns(UserWarning, match="kernels of 1 of 2 .* that of 'b'"):
        kr.load_adapter(model, path)


@pytest.mark.parametrize("way", ["bfloat16", "int8", "int4"])
def test_the_base_in_fewer_bits_is_the_same_base(path, way):
    model = build(0, dtype="bfloat16" if way == "bfloat16" else "float32")
    source = build(0)
    model.set_weights(source.get_weights())
    if way != "bfloat16":
        model.layers[0].quantize(way)
        model.layers[1].quantize(way)
    kr.load_adapter(model, path)


def test_the_file_names_its_base(path):
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["keras-randlora-adapter"])
    assert header["base"]["kind"] == "Sequential"
    assert header["base"]["parameters"] == build(0).count_params()
    assert sorted(header["base"]["kernels"]) == ["a", "b"]
