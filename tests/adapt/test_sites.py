"""Addresses: what a layer is called in files, whatever Keras numbered before."""

import keras
import numpy as np
import pytest
from backend import as_numpy
from keras import layers

import keras_randlora as kr
from keras_randlora.adapt import sites


class Block(layers.Layer):
    """A block that names none of its layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = layers.Dense(6), layers.Dense(6)

    def build(self, shape):
        self.first.build(shape)
        self.second.build(shape)
        self.built = True

    def call(self, x):
        return x + self.second(self.first(x))


def nameless():
    return keras.Sequential([keras.Input((6,)), layers.Dense(6), layers.Dense(6)])


def nested():
    return keras.Sequential([keras.Input((6,)), nameless(), layers.Dense(6)])


def blocks():
    return keras.Sequential([keras.Input((6,)), Block(), Block(), Block()])


def attention():
    inputs = keras.Input((4, 6))
    x = layers.MultiHeadAttention(2, 3)(inputs, inputs)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    return keras.Model(inputs, layers.Dense(3)(x))


MODELS = {
    "sequential": (nameless, ["dense", "dense_1"]),
    "nested": (
        nested,
        ["sequential/dense", "sequential/dense_1", "dense"],
    ),
    "blocks": (
        blocks,
        [
            f"{b}/{d}"
            for b in ("block", "block_1", "block_2")
            for d in ("dense", "dense_1")
        ],
    ),
}


def linear(model):
    return [site for site in sites(model) if site.linear]


@pytest.mark.parametrize("name", MODELS)
def test_addresses_do_not_depend_on_what_was_made_before(name):
    build, expected = MODELS[name]
    for made_before in range(3):
        keras.utils.clear_session()
        for _ in range(made_before):
            layers.Dense(4), Block(), nameless()
        assert [site.address for site in linear(build())] == expected
    assert [site.address for site in linear(build())] == expected


@pytest.mark.parametrize("build", [nameless, nested, blocks, attention])
def test_an_adapter_loads_where_it_was_saved(build, tmp_path):
    keras.utils.clear_session()
    layers.Dense(4), Block()
    model = build()
    weights = model.get_weights()
    first = linear(model)[0].layer.path
    kr.enable_randlora(model, rank=2, targets=[first])
    values = {k: np.ones(v.shape) for k, v in kr.get_adapter(model).items()}
    kr.set_adapter(model, values)
    x = np.random.default_rng(0).random((2, *model.input_shape[1:]), "float32")
    tuned = as_numpy(model(x))
    kr.save_adapter(model, tmp_path / "a.safetensors")
    kr.save_adapter(model, tmp_path / "b.safetensors")
    keras.utils.clear_session()
    for way in ("load", "merge", "again"):
        fresh = build()
        fresh.set_weights(weights)
        if way == "merge":
            halves = dict.fromkeys(
                [tmp_path / "a.safetensors", tmp_path / "b.safetensors"], 0.5
            )
            kr.merge_adapters(fresh, halves)
        else:
            kr.load_adapter(fresh, tmp_path / "a.safetensors")
            assert list(kr.get_adapter(fresh)) == list(values)
        np.testing.assert_allclose(as_numpy(fresh(x)), tuned, atol=1e-4)


def test_the_first_of_several_nameless_blocks_is_number_0():
    keras.utils.clear_session()
    model = blocks()
    assert [site.block_index for site in linear(model)] == [0, 0, 1, 1, 2, 2]
    assert len(kr.enable_randlora(model, rank=2, targets="mlp").layers) == 6
    kr.disable_randlora(model)
    chosen = kr.enable_randlora(model, rank=2, targets="mlp", layers=[0]).layers
    assert [layer.path for layer in chosen] == ["block/dense", "block/dense_1"]
    kr.disable_randlora(model)
    assert len(kr.rematerialize(model)) == 3


def test_names_that_people_gave_are_addresses():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(6, name="output"),
            layers.Dense(6, name="layer_7"),
        ]
    )
    assert [site.address for site in linear(model)] == ["output", "layer_7"]


def test_a_name_comes_before_an_address():
    keras.utils.clear_session()
    layers.Dense(4)
    model = nameless()  # dense_1 and dense_2, at the addresses dense and dense_1
    chosen = kr.enable_randlora(model, rank=2, targets="dense_1").layers
    assert [layer.path for layer in chosen] == ["dense"]
    kr.disable_randlora(model)
    chosen = kr.enable_randlora(model, rank=2, targets="dense").layers
    assert [layer.path for layer in chosen] == ["dense"]


def test_names_with_characters_of_globs_match_themselves():
    names = ["a[0]", "b*", "c?"]
    model = keras.Sequential(
        [keras.Input((6,)), *(layers.Dense(6, name=name) for name in names)]
    )
    for name in names:
        report = kr.enable_randlora(model, rank=2, targets=[name])
        assert [layer.path for layer in report.layers] == [name]
        kr.disable_randlora(model)
