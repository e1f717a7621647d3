"""Warnings: each where it is due, and nowhere else."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from models import EXAMPLES, compile_model
from versions import NEEDS_MUON, NEEDS_SCHEDULE_FREE

import keras_randlora as kr


def adapted(**options):
    model = EXAMPLES["mlp"].build()
    kr.enable_randlora(model, rank=2, targets="all-linear", **options)
    return model


class TiedDense(layers.Layer):
    """Holds two layers, the second with the kernel of the first."""

    def __init__(self, first, second, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = first, second

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build(input_shape)
        self.second._tracker.unlock()
        embeddings = getattr(self.first, "embeddings", None)
        self.second._kernel = self.first.kernel if embeddings is None else embeddings
        self.second._tracker.lock()
        super().build(input_shape)

    def call(self, inputs):
        return self.second(inputs)


def tied(first):
    """Return a model with a `Dense` that multiplies by another layer's kernel."""
    inputs = keras.Input((4,))
    return keras.Model(inputs, TiedDense(first, layers.Dense(4, name="out"))(inputs))


def test_a_tied_embedding_is_warned_of():
    model = tied(layers.Embedding(4, 4, name="embedding"))
    with pytest.warns(UserWarning, match="shares its kernel with layer '.*embedding'"):
        kr.enable_randlora(model, rank=2, targets="out")


def test_two_layers_of_one_kernel_are_refused():
    model = tied(layers.Dense(4, name="in"))
    with pytest.raises(ValueError, match="share one kernel .* exclude=.*/out"):
        kr.enable_randlora(model, rank=2, targets=["in", "out"])
    assert len(model.trainable_variables) > 0
    with pytest.warns(UserWarning, match="shares its kernel"):
        kr.enable_randlora(model, rank=2, targets="out")


@pytest.mark.parametrize(
    "optimizer, alpha, warns",
    [
        (keras.optimizers.Adam(0.02), None, True),
        (keras.optimizers.AdamW(0.0051), None, True),
        (keras.optimizers.AdamW(0.005), None, False),
        (keras.optimizers.Lion(0.02), 4, False),
        pytest.param(keras.optimizers.Muon(0.02), None, True, marks=NEEDS_MUON),
        pytest.param("ScheduleFreeAdamW", None, True, marks=NEEDS_SCHEDULE_FREE),
        (keras.optimizers.SGD(1.0), None, False),
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.02)), None, True),
    ],
)
def test_a_rate_that_diverges_with_alpha(optimizer, alpha, warns, recwarn):
    model = adapted(alpha=alpha)
    if isinstance(optimizer, str):
        optimizer = getattr(keras.optimizers, optimizer)(0.02)
    model.compile(optimizer, "mse", jit_compile=False)
    x, y = EXAMPLES["mlp"].inputs(), np.zeros((len(EXAMPLES["mlp"].inputs()), 3))
    warnings.simplefilter("always", UserWarning)  # `recwarn` hides repetitions
    for _ in range(2):
        model.fit(x, y, verbose=0)
    messages = [str(w.message) for w in recwarn if "diverge" in str(w.message)]
    assert len(messages) == warns
    assert all("at most 0.005" in message for message in messages)


def test_a_plain_model_is_not_looked_at_again():
    model = adapted()
    kr.disable_randlora(model)
    compile_model(model, learning_rate=0.5)
    EXAMPLES["mlp"].fit(model, steps=1)


@pytest.mark.parametrize("verb", ["save", "merge", "export"])
def test_an_update_that_stays_zero(verb, tmp_path, recwarn):
    model = adapted(also_train=[], train_bias="adapted")
    for layer in model.layers[1:]:
        layer.randlora.lambda_.trainable = False
    compile_model(model)
    EXAMPLES["mlp"].fit(model, steps=2)
    act = {
        "save": lambda: kr.save_adapter(model, tmp_path / "a.safetensors"),
        "merge": lambda: kr.merge_randlora(model),
        "export": lambda: kr.export_merged(model, tmp_path / "m.keras", "keras"),
    }
    warnings.simplefilter("always", UserWarning)
    act[verb]()
    messages = [str(w.message) for w in recwarn]
    assert sum("is zero after 2 steps" in message for message in messages) == 1


def test_an_untrained_and_a_trained_model_are_saved_in_silence(tmp_path):
    model = adapted()
    kr.save_adapter(model, tmp_path / "a.safetensors")
    EXAMPLES["mlp"].fit(model, steps=1)
    kr.save_adapter(model, tmp_path / "a.safetensors")


def unsaved(recwarn):
    return [str(w.message) for w in recwarn if "does not hold" in str(w.message)]


def test_what_is_trained_and_not_saved(tmp_path, recwarn):
    example = EXAMPLES["mlp"]
    model = example.build()
    kr.enable_randlora(model, rank=2, targets="all-linear", exclude=["head"])
    model.trainable = False  # else TensorFlow has nothing to set
    model.trainable = True  # thaws the head too
    compile_model(model)
    warnings.simplefilter("always", UserWarning)
    example.fit(model, steps=2)
    messages = unsaved(recwarn)
    assert len(messages) == 1
    assert "trains 2 variables" in messages[0] and "'head/kernel'" in messages[0]
    kr.save_adapter(model, tmp_path / "a.safetensors")
    names = {"hidden_1": "a", "hidden_2": "b"}
    kr.peft.save(model, tmp_path / "peft", name_map=names)
    assert len(unsaved(recwarn)) == 3
    model.get_layer("head").trainable = False
    kr.save_adapter(model, tmp_path / "a.safetensors")
    assert len(unsaved(recwarn)) == 3


@pytest.mark.parametrize(
    "options", [{}, {"also_train": ["head"]}, {"train_bias": "all"}], ids=str
)
def test_what_is_trained_and_saved_is_not_warned_of(options, tmp_path, recwarn):
    model = EXAMPLES["mlp"].build()
    kr.enable_randlora(model, rank=2, targets="all-linear", exclude=["head"], **options)
    compile_model(model)
    EXAMPLES["mlp"].fit(model, steps=1)
    kr.save_adapter(model, tmp_path / "a.safetensors")
    with kr.merged(model):
        model.make_train_function(force=True)
    assert not unsaved(recwarn)
