"""The adapter as a dictionary: round trip, switching, and every refusal."""

import re

import keras
import numpy as np
import pytest
from backend import assert_same_arrays
from keras import ops
from models import (
    EXAMPLES,
    attention,
    cnn,
    compile_model,
    counting,
    random_adapter,
    values_of,
)

import keras_randlora as kr


def adapted_cnn():
    model = cnn()
    kr.enable_randlora(
        model, 2, "dense", train_bias="adapted", also_train=["batch_norm"]
    )
    return model


def test_the_entries_and_their_start():
    model = attention()
    kr.enable_randlora(model, rank=4, targets=["query", "classifier"])
    state = kr.get_adapter(model)
    assert {path: array.shape for path, array in state.items()} == {
        "mixer/query/lambda": (4, 2),
        "mixer/query/gamma": (2, 6),
        "classifier/lambda": (4, 1),
        "classifier/gamma": (1, 3),
    }
    assert all(array.dtype == "float32" for array in state.values())
    assert np.all(state["mixer/query/lambda"] == 0)
    assert np.all(state["mixer/query/gamma"] == np.float32(1 / 6))


def test_what_is_trained_beside_is_there_too():
    assert list(kr.get_adapter(adapted_cnn())) == [
        "dense/lambda",
        "dense/gamma",
        "batch_norm/gamma",
        "batch_norm/beta",
        "batch_norm/moving_mean",
        "batch_norm/moving_variance",
        "dense/bias",
    ]


def test_round_trip():
    model = adapted_cnn()
    adapter = random_adapter(model)
    kr.set_adapter(model, adapter)
    assert_same_arrays(kr.get_adapter(model), adapter)


def test_the_result_is_a_copy():
    model = adapted_cnn()
    before = values_of(model)
    for array in kr.get_adapter(model).values():
        array += 1.0
    assert values_of(model) == before


@pytest.mark.parametrize("kind", ["tensors", "variables", "lists", "float64"])
def test_other_forms_of_arrays(kind):
    convert = {
        "tensors": ops.convert_to_tensor,
        "variables": keras.Variable,
        "lists": np.ndarray.tolist,
        "float64": np.float64,
    }[kind]
    model = adapted_cnn()
    adapter = random_adapter(model)
    kr.set_adapter(model, {path: convert(array) for path, array in adapter.items()})
    assert_same_arrays(kr.get_adapter(model), adapter)


def test_switching_two_adapters_traces_nothing_anew():
    model, counter = counting()
    example = EXAMPLES["mlp"]
    kr.enable_randlora(model, rank=2, targets="all-linear")
    compile_model(model)
    inputs = example.inputs()

    def predict():
        return model.predict(inputs, verbose=0)

    example.fit(model)
    trained = kr.get_adapter(model), predict()
    other = random_adapter(model, scale=0.2, seed=2)
    kr.set_adapter(model, other)
    other_outputs = predict()
    assert np.max(np.abs(other_outputs - trained[1])) > 1e-3

    again = counter.during(predict), counter.during(lambda: example.fit(model, 1))
    for adapter, outputs in (trained, (other, other_outputs)):
        assert counter.during(lambda a=adapter: kr.set_adapter(model, a)) == 0
        assert counter.during(predict) == again[0]
        assert np.array_equal(predict(), outputs)
        assert counter.during(lambda: example.fit(model, 1)) == again[1]
        kr.set_adapter(model, adapter)


def without(path):
    return lambda state: {key: state[key] for key in state if key != path}


def with_entry(path, change):
    return lambda state: {**state, path: change(state.get(path))}


def first_entry(value):
    """Return a change that sets one entry of an array."""

    def change(array):
        array = array.astype("float64")
        array.flat[0] = value
        return array

    return change


REFUSALS = {
    "missing": (
        without("dense/gamma"),
        "The adapter has no entry 'dense/gamma' of shape (4, 7).",
    ),
    "empty": (
        lambda state: {},
        "The adapter has no entry 'dense/lambda' of shape (2, 4).",
    ),
    "missing beside": (
        without("batch_norm/moving_mean"),
        "The adapter has no entry 'batch_norm/moving_mean' of shape (4,).",
    ),
    "unknown": (
        with_entry("head/lambda", lambda _: np.zeros((2, 2), "float32")),
        "The adapter's entry 'head/lambda' belongs to no adapted layer of the model.",
    ),
    "misshapen": (
        with_entry("dense/lambda", np.transpose),
        "The adapter's entry 'dense/lambda' has shape (4, 2); the model expects "
        "(2, 4).",
    ),
    "too many dimensions": (
        with_entry("dense/bias", lambda array: array[None]),
        "The adapter's entry 'dense/bias' has shape (1, 7); the model expects (7,).",
    ),
    "nothing": (
        with_entry("dense/lambda", lambda _: None),
        "The adapter's entry 'dense/lambda' has shape (); the model expects (2, 4).",
    ),
    "nan": (
        with_entry("dense/gamma", first_entry(np.nan)),
        "The adapter's entry 'dense/gamma' holds values that are not finite.",
    ),
    "infinity": (
        with_entry("dense/bias", first_entry(-np.inf)),
        "The adapter's entry 'dense/bias' holds values that are not finite.",
    ),
    "infinite in float32": (
        with_entry("dense/gamma", first_entry(1e300)),
        "The adapter's entry 'dense/gamma' holds values that are not finite.",
    ),
    "text": (
        with_entry("dense/gamma", lambda array: array.astype(str)),
        "The adapter's entry 'dense/gamma' holds no real numbers, but str",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_leave_the_model_as_it_was(name):
    spoil, message = REFUSALS[name]
    model = adapted_cnn()
    before = values_of(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        kr.set_adapter(model, spoil(random_adapter(model)))
    assert values_of(model) == before
