"""Every verb on models that verbs seldom meet: done whole, or refused with no trace."""

import keras
import numpy as np
import pytest
from backend import BACKEND, as_numpy
from keras import layers
from models import randomize

import keras_randlora as kr


class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of one's own, which nobody has registered."""

    def __init__(self, peak):
        super().__init__()
        self.peak = peak

    def __call__(self, step):
        return self.peak

    def get_config(self):
        return {"peak": self.peak}


@keras.saving.register_keras_serializable("test_promises")
class Doubled(layers.Dense):
    """A `Dense` with a call of its own."""

    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


class Mine(kr.RandLoRADense):
    """An adapted layer with a call of its own."""

    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training=training)


RATES = {
    "a rate": lambda: 1e-3,
    "a schedule of one's own": lambda: Warmup(1e-3),
    "a callable": lambda: lambda: 1e-3,
}
KINDS = {"float32": (layers.Dense, {}), "a subclass": (Doubled, {})}
if BACKEND != "jax":  # which computes in float64 only where it is told to
    KINDS["float64"] = (layers.Dense, {"dtype": "float64"})


def build(kind="float32"):
    cls, options = KINDS[kind]
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((6,), dtype=options.get("dtype", "float32")),
            cls(8, name="d", **options),
            layers.Dense(3, name="head", **options),
        ],
        name="model",
    )


def fitted(kind="float32", rate="a rate"):
    """Return a model that was adapted, compiled and fitted, and inputs for it."""
    model = build(kind)
    kr.enable_randlora(model, rank=2, targets="d", also_train="head")
    model.compile(keras.optimizers.AdamW(RATES[rate]()), "mse")
    x = np.random.default_rng(0).standard_normal((4, 6))
    model.fit(x, np.zeros((4, 3)), verbose=0)
    randomize(model, seed=0)
    return model, x


def snapshot(model):
    """Return all that a refused verb must leave as it was."""
    optimizer = model.optimizer
    return {
        "classes": [type(layer).__qualname__ for layer in model.layers],
        "values": [as_numpy(v).tobytes() for v in model.variables],
        "trainable": [(v.path, v.trainable) for v in model.variables],
        "optimizer": (id(optimizer), optimizer.built, model.compiled),
        "state": [as_numpy(v).tobytes() for v in optimizer.variables],
    }


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_exports_leave_no_trace(kind, rate, tmp_path):
    model, x = fitted(kind, rate)
    before, outputs = snapshot(model), as_numpy(model(x))
    with kr.merged(model):
        np.testing.assert_allclose(as_numpy(model(x)), outputs, atol=1e-5)
    assert snapshot(model) == before
    with kr.base_only(model):
        pass
    assert snapshot(model) == before
    kr.export_merged(model, tmp_path / "m.keras", format="keras")
    assert snapshot(model) == before
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(as_numpy(loaded(x)), outputs, atol=1e-5)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", [kr.merge_randlora, kr.disable_randlora])
def test_merging_and_disabling_end_plain_and_fit_on(verb, kind, rate):
    model, x = fitted(kind, rate)
    outputs = as_numpy(model(x))
    verb(model)
    assert [type(layer) for layer in model.layers] == [KINDS[kind][0], layers.Dense]
    assert all(v.trainable for v in model.weights)
    assert int(as_numpy(model.optimizer.iterations)) == 0
    if verb is kr.merge_randlora:
        np.testing.assert_allclose(as_numpy(model(x)), outputs, atol=1e-5)
    before = [as_numpy(v).copy() for v in model.weights]
    model.fit(x, np.ones((4, 3)), verbose=0)
    moved = [
        np.any(as_numpy(v) != b) for v, b in zip(model.weights, before, strict=True)
    ]
    assert all(moved)


def other_shape(model, folder):
    """Return an adapter that trains a head of other shape."""
    other = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, name="d"),
            layers.Dense(4, name="other"),
        ]
    )
    kr.enable_randlora(other, rank=2, targets="d", also_train="other")
    kr.save_adapter(other, folder / "other.safetensors")
    return folder / "other.safetensors"


REFUSALS = {
    "a task of Keras's": lambda m, folder: m.quantize("int8"),
    "Keras's LoRA": lambda m, folder: m.layers[0].enable_lora(2),
    "adapting twice": lambda m, folder: kr.enable_randlora(m, rank=2),
    "another file": lambda m, folder: kr.load_adapter(m, other_shape(m, folder)),
    "a file that is not there": lambda m, folder: kr.load_adapter(m, folder / "x"),
    "an optimizer that is not there": lambda m, f: kr.load_optimizer(m, f / "x"),
    "a bucket": lambda m, folder: kr.save_adapter(m, "gs://b/a.safetensors"),
    "an unknown format": lambda m, folder: kr.export_merged(m, folder / "m", "pdf"),
    "a wrong suffix": lambda m, folder: kr.export_merged(m, folder / "m.h5", "keras"),
    "no such entry": lambda m, folder: kr.set_adapter(m, {"x/lambda": np.ones(2)}),
    "other weights": lambda m, f: m.set_weights(_of_another_seed().get_weights()),
}


def _of_another_seed():
    other = build()
    kr.enable_randlora(other, rank=2, targets="d", also_train="head", seed=9)
    other.compile(keras.optimizers.AdamW(1e-3), "mse")
    return other


@pytest.mark.parametrize("refusal", sorted(set(REFUSALS) - {"other weights"}))
def test_a_refused_verb_leaves_the_model_as_it_was(refusal, tmp_path):
    model, _ = fitted(rate="a schedule of one's own")
    before = snapshot(model)
    with pytest.raises((ValueError, FileNotFoundError)):
        REFUSALS[refusal](model, tmp_path)
    assert snapshot(model) == before


def test_bases_of_another_seed_are_refused(tmp_path):
    model, _ = fitted()
    bases = [as_numpy(basis).tobytes() for basis in model.layers[0].bank.stored()]
    with pytest.raises(ValueError, match="follows from seed=0.* values of other bases"):
        REFUSALS["other weights"](model, tmp_path)
    with pytest.raises(ValueError, match="values of other bases"):
        model.set_state_tree(_of_another_seed().get_state_tree())
    assert [as_numpy(b).tobytes() for b in model.layers[0].bank.stored()] == bases


def test_a_refused_mixture_leaves_a_plain_model_as_it_was(tmp_path):
    adapter = other_shape(None, tmp_path)
    model = build()
    model.compile(keras.optimizers.AdamW(Warmup(1e-3)), "mse")
    model.fit(np.ones((4, 6)), np.zeros((4, 3)), verbose=0)
    before = snapshot(model)
    with pytest.raises(ValueError, match="has no layer 'other'"):
        kr.merge_adapters(model, {adapter: 1.0})
    assert snapshot(model) == before


@pytest.mark.skipif(BACKEND == "jax", reason="JAX computes in float32")
def test_a_mixture_of_float64_is_exact(tmp_path):
    model, x = fitted("float64")
    kr.save_adapter(model, tmp_path / "a.safetensors")
    kr.merge_randlora(model)
    plain = build("float64")
    kr.merge_adapters(plain, {tmp_path / "a.safetensors": 1.0})
    for layer, merged in zip(plain.layers, model.layers, strict=True):
        np.testing.assert_array_equal(as_numpy(layer.bias), as_numpy(merged.bias))
    head, merged = plain.layers[1].kernel, model.layers[1].kernel
    np.testing.assert_array_equal(as_numpy(head), as_numpy(merged))


def test_a_subclass_of_an_adapted_layer_stays_one():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, Mine(3, rank=2, name="mine")(inputs))
    randomize(model, seed=0)
    x = np.ones((2, 6), "float32")
    outputs = as_numpy(model(x))
    with kr.merged(model):
        assert type(model.layers[1]) is layers.Dense
    assert type(model.layers[1]) is Mine
    np.testing.assert_array_equal(as_numpy(model(x)), outputs)


def test_a_head_on_an_adapted_backbone_is_saved_with_it(tmp_path):
    def whole(body):
        inputs = keras.Input((6,))
        return keras.Model(inputs, layers.Dense(3, name="new")(body(inputs)))

    def backbone():
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [keras.Input((6,)), layers.Dense(8, name="hidden")], name="backbone"
        )

    body = backbone()
    kr.enable_randlora(body, rank=2, targets="hidden")
    model = whole(body)
    randomize(model, seed=0)
    x = np.ones((2, 6), "float32")
    kr.save_adapter(model, tmp_path / "a.safetensors")
    fresh = whole(backbone())
    kr.load_adapter(fresh, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(as_numpy(fresh(x)), as_numpy(model(x)))
    kr.merge_randlora(model)
    assert type(body.layers[0]) is layers.Dense
    np.testing.assert_allclose(as_numpy(fresh(x)), as_numpy(model(x)), atol=1e-5)
