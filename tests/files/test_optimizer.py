"""Optimizer files: what is restored, what is refused, and what a refusal leaves."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from backend import as_numpy
from keras import layers
from keras.optimizers import Adagrad, Adam, AdamW, LossScaleOptimizer, RMSprop
from keras.optimizers.schedules import CosineDecay
from models import EXAMPLES, compile_model, randomize
from safetensors import safe_open
from safetensors.numpy import save

import keras_randlora as kr

MLP = EXAMPLES["mlp"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "optimizer.safetensors"


def step(model):
    """Leave in the optimizer what one more step could; a real one is traced first."""
    optimizer = model.optimizer
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    steps = int(as_numpy(optimizer.iterations)) + 1
    rng = np.random.default_rng(steps)
    for variable in optimizer.variables:
        if len(variable.shape):  # moments and sums, and no counters
            variable.assign(rng.random(variable.shape))
    optimizer.iterations.assign(steps)


def fitted(optimizer=None, **options):
    """Return an adapted model as after one step; by default of Adam."""
    model = MLP.build()
    kr.enable_randlora(model, **{"rank": 2, "targets": "all-linear", **options})
    model.compile(optimizer or Adam(0.01), "mse", jit_compile=False)
    randomize(model)
    step(model)
    return model


def state_of(model):
    return [as_numpy(variable).tobytes() for variable in model.optimizer.variables]


def set_header(path, **fields):
    """Write a file again with other fields in its header."""
    with safe_open(path, framework="numpy") as file:
        ((key, text),) = file.metadata().items()
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    header = json.dumps({**json.loads(text), **fields})
    path.write_bytes(save(arrays, metadata={key: header}))


def test_the_state_of_the_file_replaces_the_other(path):
    model, other = fitted(), fitted()
    kr.save_optimizer(model, path)
    step(other)
    assert state_of(other) != state_of(model)
    kr.load_optimizer(other, path)
    assert state_of(other) == state_of(model)


# Loading is refused


def nothing(path):
    """Leave the file as it is."""


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def make_later(path):
    set_header(path, version=3)


def make_adapter(path):
    kr.save_adapter(fitted(), path)


OTHER_VARIABLES = "belongs to an optimizer of other variables: it "
UNREADABLE = "' cannot be read as optimizer state written by keras_randlora "
# What happens to the file, what it is loaded into, the error and its message.
REFUSALS = {
    "another kind": (
        nothing,
        lambda: fitted(AdamW(0.01)),
        ValueError,
        "' holds the state of Adam; the model is compiled with AdamW.",
    ),
    "other shapes": (nothing, lambda: fitted(rank=3), ValueError, OTHER_VARIABLES),
    "fewer layers": (
        nothing,
        lambda: fitted(exclude="head"),
        ValueError,
        OTHER_VARIABLES,
    ),
    "a later version": (
        make_later,
        fitted,
        ValueError,
        rf"{UNREADABLE}\(format version 3\).",
    ),
    "cut": (cut, fitted, ValueError, UNREADABLE),
    "an adapter": (make_adapter, fitted, ValueError, UNREADABLE),
    "missing": (Path.unlink, fitted, FileNotFoundError, "There is no optimizer file '"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_file_leaves_the_state_as_it_was(name, path):
    spoil, build, error, message = REFUSALS[name]
    kr.save_optimizer(fitted(), path)
    spoil(path)
    model = build()
    before = state_of(model)
    with pytest.raises(error, match=message):
        kr.load_optimizer(model, path)
    assert state_of(model) == before


def test_a_model_that_is_not_compiled_has_nothing_to_load_into(path):
    kr.save_optimizer(fitted(), path)
    model = MLP.build()
    kr.enable_randlora(model, 2, "all-linear")
    with pytest.raises(ValueError, match=r"has no optimizer. Call `model.compile\("):
        kr.load_optimizer(model, path)


# What a LossScaleOptimizer wraps


def scaled(kind):
    return LossScaleOptimizer(kind(0.01))


def test_another_optimizer_below_the_loss_scale_is_refused(path):
    """The moments of RMSprop and the sums of Adagrad have the same shapes."""
    kr.save_optimizer(fitted(scaled(RMSprop)), path)
    model = fitted(scaled(Adagrad))
    before = state_of(model)
    message = (
        r"holds the state of LossScaleOptimizer\(RMSprop\); the model is compiled with "
        r"LossScaleOptimizer\(Adagrad\)."
    )
    with pytest.raises(ValueError, match=message):
        kr.load_optimizer(model, path)
    assert state_of(model) == before


def test_a_file_of_version_1_0_does_not_tell_what_the_loss_scale_wraps(path):
    model, other = fitted(scaled(RMSprop)), fitted(scaled(RMSprop))
    kr.save_optimizer(model, path)
    set_header(path, optimizer="LossScaleOptimizer")
    step(other)
    assert state_of(other) != state_of(model)
    kr.load_optimizer(other, path)
    assert state_of(other) == state_of(model)


# Saving is refused


def test_a_model_without_a_state_writes_nothing(path):
    model = MLP.build()
    with pytest.raises(ValueError, match="not adapted"):
        kr.save_optimizer(model, path)
    kr.enable_randlora(model, 2, "all-linear")
    with pytest.raises(ValueError, match="has no optimizer state to save"):
        kr.save_optimizer(model, path)
    compile_model(model)
    with pytest.raises(ValueError, match="has no optimizer state to save"):
        kr.save_optimizer(model, path)
    assert not path.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_leaves_the_former_file(path, value):
    model = fitted()
    kr.save_optimizer(model, path)
    before = path.read_bytes()
    moment = model.optimizer.variables[-1]
    moment.assign(np.full(moment.shape, value))
    message = f"'{moment.path}' holds values that are not finite"
    with pytest.raises(ValueError, match=message):
        kr.save_optimizer(model, path)
    assert path.read_bytes() == before


# Learning rates, seeds, names


def compiled(rate, **options):
    """Return a model that is adapted and compiled, and not fitted."""
    model = MLP.build()
    kr.enable_randlora(model, 2, "all-linear", **options)
    compile_model(model, optimizer=Adam(rate))
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_replaced_learning_rate_is_said(path):
    kr.save_optimizer(fitted(Adam(0.01)), path)
    model = compiled(0.5)
    with pytest.warns(UserWarning, match="is 0.01 again, .* compiled with 0.5"):
        kr.load_optimizer(model, path)
    np.testing.assert_allclose(as_numpy(model.optimizer.learning_rate), 0.01)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_schedule_stays_and_goes_on(path):
    kr.save_optimizer(fitted(Adam(0.01)), path)
    schedule = CosineDecay(0.01, 10)
    model = compiled(schedule)
    with pytest.warns(UserWarning, match="constant learning rate.* at step 1"):
        kr.load_optimizer(model, path)
    expected = as_numpy(schedule(1))
    np.testing.assert_allclose(as_numpy(model.optimizer.learning_rate), expected)
    kr.save_optimizer(model, path)
    with pytest.warns(UserWarning, match="scheduled learning rate"):
        kr.load_optimizer(compiled(0.01), path)


def test_the_state_of_other_layers_of_equal_shapes_is_refused(path):
    def square(target):
        model = keras.Sequential(
            [keras.Input((6,)), *(layers.Dense(6, name=name) for name in "ab")]
        )
        kr.enable_randlora(model, rank=2, targets=target)
        model.compile(Adam(0.01), "mse")
        return model

    model = square("a")
    step(model)
    kr.save_optimizer(model, path)
    with pytest.raises(ValueError, match="the first that differs is 'a/lambda'"):
        kr.load_optimizer(square("b"), path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dropout_resumes_where_it_was(path, tmp_path):
    inputs = np.random.default_rng(0).random((8, 6)).astype("float32")

    def build():
        keras.utils.set_random_seed(1)
        return keras.Sequential([keras.Input((6,)), layers.Dense(3, name="d")])

    def fit(model, epochs):
        model.fit(inputs, inputs[:, :3], epochs=epochs, shuffle=False, verbose=0)

    model = build()
    kr.enable_randlora(model, rank=2, alpha=4, targets="d", dropout=0.5)
    model.compile(Adam(1e-3), "mse")
    fit(model, 2)
    kr.save_adapter(model, tmp_path / "a.safetensors")
    kr.save_optimizer(model, path)
    fit(model, 2)
    resumed = build()
    kr.load_adapter(resumed, tmp_path / "a.safetensors")
    resumed.compile(Adam(1e-3), "mse")
    kr.load_optimizer(resumed, path)
    fit(resumed, 2)
    for name, array in kr.get_adapter(model).items():
        np.testing.assert_array_equal(kr.get_adapter(resumed)[name], array)
