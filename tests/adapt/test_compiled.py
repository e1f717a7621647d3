"""A backbone is adapted, and the task that holds it goes on with what is true now."""

import gc

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_randlora as kr

X = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
Y = np.ones((4, 2), "float32")


def backbone_and_task():
    """Return a backbone and a task that holds it."""
    inputs = keras.Input((8,))
    backbone = keras.Model(inputs, layers.Dense(8, name="q")(inputs), name="backbone")
    inputs = keras.Input((8,))
    head = layers.Dense(2, name="head")
    return backbone, keras.Model(inputs, head(backbone(inputs)), name="task")


def train_a_little(backbone):
    """Set λ to numbers that change the outputs."""
    rng = np.random.default_rng(1)
    lambda_ = backbone.get_layer("q").randlora.lambda_
    lambda_.assign(0.2 * rng.standard_normal(lambda_.shape))


def eager(model):
    return np.array(ops.convert_to_numpy(model(X)))


def predicted(model):
    return model.predict(X, verbose=0)


def same(a, b):
    return np.allclose(a, b, atol=1e-4)


def test_a_task_that_predicted_before_its_backbone_was_adapted():
    backbone, task = backbone_and_task()
    base = predicted(task)
    kr.enable_randlora(backbone, rank=2, targets="q")
    train_a_little(backbone)
    assert not same(predicted(task), base) and same(predicted(task), eager(task))


@pytest.mark.parametrize("leave", [kr.merge_randlora, kr.disable_randlora])
def test_a_task_that_predicted_while_its_backbone_was_adapted(leave):
    backbone, task = backbone_and_task()
    base = predicted(task)
    kr.enable_randlora(backbone, rank=2, targets="q")
    train_a_little(backbone)
    tuned = predicted(task)
    with kr.merged(backbone):
        assert same(predicted(task), tuned)
    assert same(predicted(task), tuned)
    leave(backbone)
    expected = tuned if leave is kr.merge_randlora else base
    assert same(predicted(task), expected) and same(eager(task), expected)


def test_a_backbone_that_predicted_before_its_task_was_adapted():
    backbone, task = backbone_and_task()
    base = predicted(backbone)
    kr.enable_randlora(task, rank=2, targets="q")
    train_a_little(backbone)
    tuned = predicted(backbone)
    assert not same(tuned, base) and same(tuned, eager(backbone))
    with kr.merged(task):
        assert same(predicted(backbone), tuned)
    kr.disable_randlora(task)
    assert same(predicted(backbone), base)


def test_a_task_that_predicted_with_another_alpha():
    backbone, task = backbone_and_task()
    for alpha in (2, 40):
        kr.enable_randlora(backbone, rank=2, targets="q", alpha=alpha)
        train_a_little(backbone)
        assert same(predicted(task), eager(task))
        kr.disable_randlora(backbone)


def test_a_task_that_was_fitted_before_must_be_compiled_again():
    backbone, task = backbone_and_task()
    task.compile("adam", "mse")
    task.fit(X, Y, verbose=0)
    kernel = np.array(ops.convert_to_numpy(backbone.get_layer("q")._kernel))
    with pytest.warns(UserWarning, match="Model 'task' was compiled with an") as caught:
        kr.enable_randlora(backbone, rank=2, targets="q")
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.raises(ValueError, match=r"call `compile\(\)`"):
        task.fit(X, Y, verbose=0)
    task.compile("adam", "mse")
    task.fit(X, Y, verbose=0)
    layer = backbone.get_layer("q")
    np.testing.assert_array_equal(ops.convert_to_numpy(layer._kernel), kernel)
    assert np.any(ops.convert_to_numpy(layer.randlora.lambda_))


def test_a_task_is_fitted_on_after_the_merge():
    backbone, task = backbone_and_task()
    kr.enable_randlora(backbone, rank=2, targets="q")
    task.compile("adam", "mse")
    task.fit(X, Y, verbose=0)
    kr.merge_randlora(backbone)
    kernel = np.array(ops.convert_to_numpy(backbone.get_layer("q")._kernel))
    task.fit(X, Y, verbose=0)
    after = ops.convert_to_numpy(backbone.get_layer("q")._kernel)
    assert np.any(after != kernel)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="parameters of torch")
def test_torch_finds_the_parameters_in_the_task():
    backbone, task = backbone_and_task()
    kr.enable_randlora(backbone, rank=2, targets="q")
    held = {id(parameter) for parameter in task.parameters()}
    adapter = backbone.get_layer("q").randlora
    assert {id(adapter.lambda_.value), id(adapter.gamma.value)} <= held
    kr.merge_randlora(backbone)
    assert len(list(task.parameters())) == 4


def test_models_without_the_layers_are_left_alone():
    backbone, _ = backbone_and_task()
    _, other = backbone_and_task()
    other.compile("adam", "mse")
    other.fit(X, Y, verbose=0)
    predicted(other)
    functions = other.train_function, other.predict_function, other.optimizer
    kr.enable_randlora(backbone, rank=2, targets="q")
    kr.merge_randlora(backbone)
    assert functions == (other.train_function, other.predict_function, other.optimizer)
    assert other.compiled


def test_frozen_objects_may_hide_models_and_it_is_said():
    backbone, _ = backbone_and_task()
    gc.freeze()
    with pytest.warns(UserWarning, match=r"`gc\.freeze\(\)` hides the layers"):
        kr.enable_randlora(backbone, rank=2, targets="all-linear")
