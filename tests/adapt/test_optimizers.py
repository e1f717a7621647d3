"""What optimizers make of λ and γ, and what they remember of them."""

import keras
import numpy as np
import pytest
from backend import BACKEND, as_numpy
from keras import layers
from models import EXAMPLES, CallCounter, compile_model, moved_adapter
from versions import KERAS, NEEDS_MUON, NEEDS_SCHEDULE_FREE

import keras_randlora as kr

MLP = EXAMPLES["mlp"]


def adapted(optimizer=None, **options):
    model = MLP.build()
    kr.enable_randlora(model, **{"rank": 2, "targets": "all-linear", **options})
    compile_model(model, optimizer=optimizer)
    return model


def muon(**options):
    decay = {"adam_weight_decay": 0.01} if KERAS >= (3, 13) else {}
    return keras.optimizers.Muon(1e-3, **decay, **options)


@NEEDS_MUON
@pytest.mark.parametrize("wrapped", [False, True])
def test_muon_treats_lambda_and_gamma_as_adamw_does(wrapped):
    def trained(optimizer):
        if wrapped:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 1.0)
        model = adapted(optimizer)
        MLP.fit(model, steps=3)
        return kr.get_adapter(model)

    found, expected = trained(muon()), trained(muon(exclude_layers=["randlora"]))
    assert all(np.any(array) for key, array in found.items() if "lambda" in key)
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)


@NEEDS_MUON
def test_muon_treats_other_matrices_as_before():
    model = adapted(muon(), targets="hidden*", also_train="head")
    MLP.fit(model)
    slots = [slot.path.split("/")[-1] for slot in model.optimizer.variables]
    has_velocity = {
        variable.path.split("/", 1)[1]: (
            variable.path.replace("/", "_") + "_velocity" in slots
        )
        for variable in model.trainable_variables
        if "hidden_2" not in variable.path
    }
    assert has_velocity == {
        "randlora/lambda": True,
        "randlora/gamma": True,
        "kernel": False,
        "bias": True,
    }


def schedule_free():
    return keras.optimizers.ScheduleFreeAdamW(1e-3)


def averaged():
    return keras.optimizers.Adam(1e-3, use_ema=True)


AVERAGING = {
    "ScheduleFreeAdamW": schedule_free,
    "use_ema": averaged,
    "a wrapped one": lambda: keras.optimizers.LossScaleOptimizer(averaged(), 1.0),
    "both": lambda: keras.optimizers.ScheduleFreeAdamW(1e-3, use_ema=True),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("ScheduleFreeAdamW", marks=NEEDS_SCHEDULE_FREE),
        "use_ema",
        "a wrapped one",
        pytest.param("both", marks=NEEDS_SCHEDULE_FREE),
    ],
)
def test_averages_follow_an_adapter_that_is_set(name, tmp_path):
    model = adapted(AVERAGING[name]())
    MLP.fit(model, steps=2)
    other, path = adapted(), tmp_path / "a.safetensors"
    for seed in (1, 2):
        switched = moved_adapter(model, seed)
        if seed == 1:
            kr.set_adapter(model, switched)
        else:
            kr.set_adapter(other, switched)
            kr.save_adapter(other, path)
            kr.load_adapter(model, path)
        MLP.fit(model, steps=1)
        # A step of these moves an entry by no more than a few learning rates.
        for key, array in kr.get_adapter(model).items():
            np.testing.assert_allclose(array, switched[key], atol=5e-3)
    assert int(model.optimizer.iterations) == 4


@NEEDS_SCHEDULE_FREE
def test_averages_of_a_task_follow_the_adapter_of_its_backbone():
    body = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="d")])
    kr.enable_randlora(body, rank=2, targets="d")
    inputs = keras.Input((6,))
    task = keras.Model(inputs, layers.Dense(3, name="head")(body(inputs)))
    compile_model(task, optimizer=schedule_free())
    MLP.fit(task)
    head = as_numpy(task.get_layer("head").kernel)
    switched = moved_adapter(body, seed=1)
    kr.set_adapter(body, switched)
    MLP.fit(task, steps=1)
    for key, array in kr.get_adapter(body).items():
        np.testing.assert_allclose(array, switched[key], atol=5e-3)
    np.testing.assert_allclose(as_numpy(task.get_layer("head").kernel), head, atol=5e-3)


def test_gradients_that_wait_are_those_of_the_adapter_that_is_set():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    model = adapted(optimizer)
    switched = moved_adapter(model, seed=1)
    MLP.fit(model, steps=1)
    kr.set_adapter(model, switched)
    sums = optimizer._accumulated_gradients
    assert len(sums) == 6 and not any(np.any(as_numpy(total)) for total in sums)


def test_a_second_fit_with_averages():
    """On JAX Keras 3.15.1 deletes the arrays of a plain model here."""
    model = adapted(averaged())
    MLP.fit(model)
    first = kr.get_adapter(model)
    MLP.fit(model)
    assert all(np.any(first[k] != array) for k, array in kr.get_adapter(model).items())


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow traces it twice else")
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "loss scale"])
def test_the_first_step_is_traced_once(scaled):
    counter = CallCounter()
    model = keras.Sequential(
        [keras.Input((6,)), counter, layers.Dense(4, name="dense")]
    )
    kr.enable_randlora(model, rank=2, targets="dense")
    optimizer = keras.optimizers.Adam()
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer=optimizer, loss="mse", jit_compile=False)
    traced = counter.calls
    model.fit(np.ones((8, 6)), np.ones((8, 4)), epochs=2, verbose=0)
    assert counter.calls - traced == 1
    assert model.optimizer.built
