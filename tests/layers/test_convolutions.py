"""Convolutions with an update, against a kernel that is summed by hand."""

import re

import keras
import numpy as np
import pytest
from backend import BACKEND, as_numpy, assert_close
from keras import layers
from models import randomize, structure_of, update_by_formula, values_of

import keras_randlora as kr
from keras_randlora.layers import RandLoRALayer

# A layer of each kind, and the shape of an input.
KINDS = {
    "Conv1D": (dict(filters=5, kernel_size=3, padding="same"), (9, 4)),
    "Conv1D, causal": (dict(filters=5, kernel_size=2, padding="causal"), (9, 4)),
    "Conv2D": (dict(filters=6, kernel_size=3, strides=2), (9, 9, 4)),
    "Conv2D, patches": (dict(filters=7, kernel_size=4, strides=4), (8, 8, 3)),
    "Conv2D, dilated": (dict(filters=4, kernel_size=2, dilation_rate=2), (8, 8, 3)),
    "Conv3D": (dict(filters=4, kernel_size=2, use_bias=False), (5, 5, 5, 3)),
    "Conv1DTranspose": (dict(filters=5, kernel_size=3, strides=2), (6, 4)),
    "Conv2DTranspose": (dict(filters=5, kernel_size=2, strides=2), (5, 5, 3)),
    "Conv3DTranspose": (dict(filters=3, kernel_size=2, strides=2), (3, 3, 3, 4)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def model_of(kind, dtype=None):
    """Return a model of one convolution, and a batch of inputs."""
    options, shape = KINDS[kind]
    keras.utils.set_random_seed(2)
    layer = getattr(layers, kind.partition(",")[0])(
        **options, activation="tanh", name="conv", dtype=dtype
    )
    model = keras.Sequential([keras.Input(shape), layer, layers.Flatten()])
    inputs = np.random.default_rng(0).standard_normal((2, *shape)).astype("float32")
    return model, inputs


def adapted(kind, dtype=None, **options):
    model, inputs = model_of(kind, dtype)
    kr.enable_randlora(model, 2, "conv", **options)
    randomize(model, scale=0.2)
    return model, inputs


def with_kernel(kind, kernel):
    """Return the plain model with another kernel."""
    model, _ = model_of(kind)
    layer = model.get_layer("conv")
    vars(layer).get("_kernel", vars(layer).get("kernel")).assign(kernel)
    return model


@every_kind
def test_the_output_is_that_of_the_summed_kernel(kind):
    model, x = adapted(kind)
    layer = model.get_layer("conv")
    assert isinstance(layer, RandLoRALayer)
    base = layer.randlora.product.kernel.variables(layer)[0]
    layout = layer.kernel_layout()
    update = as_numpy(layout.to_kernel(update_by_formula(layer)))
    twin = with_kernel(kind, as_numpy(base) + update)
    assert_close(model.predict_on_batch(x), twin.predict_on_batch(x), 1e-5)
    channels_in, channels_out = x.shape[-1], KINDS[kind][0]["filters"]
    assert (layout.inputs % channels_in, layout.outputs) == (0, channels_out)


@every_kind
def test_verbs(kind, tmp_path):
    plain, x = model_of(kind)
    before, structure, values = (
        plain.predict_on_batch(x),
        structure_of(plain),
        values_of(plain),
    )
    kr.enable_randlora(plain, 2, "conv")
    np.testing.assert_allclose(plain.predict_on_batch(x), before, rtol=1e-6, atol=1e-6)
    randomize(plain, scale=0.2)
    tuned = plain.predict_on_batch(x)
    kr.save_adapter(plain, tmp_path / "a.safetensors")
    with kr.base_only(plain):
        np.testing.assert_allclose(plain.predict_on_batch(x), before, atol=1e-6)
    with kr.merged(plain):
        assert_close(plain.predict_on_batch(x), tuned, 1e-5)
    kr.disable_randlora(plain)
    assert (structure_of(plain), values_of(plain)) == (structure, values)
    kr.load_adapter(plain, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(plain.predict_on_batch(x), tuned)
    kr.merge_randlora(plain)
    assert structure_of(plain) == structure
    assert_close(plain.predict_on_batch(x), tuned, 1e-5)


@every_kind
def test_files_of_keras(kind, tmp_path):
    model, x = adapted(kind)
    tuned = model.predict_on_batch(x)
    model.save_weights(tmp_path / "m.weights.h5")
    plain, _ = model_of(kind)
    plain.load_weights(tmp_path / "m.weights.h5")
    assert_close(plain.predict_on_batch(x), tuned, 1e-5)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert_close(again.predict_on_batch(x), tuned, 1e-6)
    kr.merge_randlora(again)
    assert_close(again.predict_on_batch(x), tuned, 1e-5)


@pytest.mark.parametrize("kind", ["Conv2D", "Conv2DTranspose"])
def test_training_moves_the_update_only(kind):
    model, x = adapted(kind)
    frozen = [as_numpy(w).copy() for w in model.non_trainable_weights]
    trained = [as_numpy(w).copy() for w in model.trainable_weights]
    model.compile(keras.optimizers.SGD(0.01), "mse")
    model.train_on_batch(x, 0 * model.predict_on_batch(x))
    assert all(map(np.array_equal, map(as_numpy, model.non_trainable_weights), frozen))
    assert not any(map(np.array_equal, map(as_numpy, model.trainable_weights), trained))


@pytest.mark.parametrize("kind", ["Conv2D, patches", "Conv2DTranspose"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(kind, policy):
    model, x = adapted(kind, policy)
    expected, _ = adapted(kind)
    outputs = model.predict_on_batch(x).astype("float32")
    tolerance = 0.02 if policy == "mixed_float16" else 0.1
    assert_close(outputs, expected.predict_on_batch(x), tolerance)


def image_model():
    """Return a model with convolutions of every kind that matters to a group."""
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 2, strides=2, name="patches")(inputs)
    x = layers.Conv2D(4, 3, padding="same", name="overlapping")(x)
    x = layers.Conv2D(4, 3, padding="same", groups=2, name="grouped")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.SeparableConv2D(4, 2, name="separable")(x)
    x = layers.Dense(3, name="head")(layers.Flatten(name="flatten")(x))
    return keras.Model(inputs, x, name="images")


def adapted_by(targets):
    report = kr.enable_randlora(image_model(), 2, targets)
    return [layer.path for layer in report.layers]


def test_groups():
    assert adapted_by("all-linear") == ["patches", "head"]
    assert adapted_by("conv") == ["patches", "overlapping"]
    assert adapted_by(["all-linear", "conv"]) == ["patches", "overlapping", "head"]
    assert adapted_by("re:.*a.*") == ["patches", "overlapping", "head"]


def test_the_share_counts_what_is_left():
    report = kr.enable_randlora(image_model(), 2, ["all-linear", "conv"])
    grouped, depthwise, separable = 3 * 3 * 2 * 4, 3 * 3 * 4, 2 * 2 * 4 + 4 * 4
    reached = 2 * 2 * 4 * 4 + 3 * 3 * 4 * 4 + 4 * 3
    np.testing.assert_allclose(
        report.coverage, reached / (reached + grouped + depthwise + separable)
    )


@pytest.mark.parametrize("name", ["grouped", "depthwise", "separable"])
def test_what_is_no_matrix_is_refused_by_name(name):
    model = image_model()
    before = structure_of(model)
    message = (
        f"Target '{name}' matches '{name}', a grouped or depthwise convolution of type "
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        kr.enable_randlora(model, 2, name)
    assert structure_of(model) == before


def test_a_subclass_keeps_what_it_does():
    class Doubled(layers.Conv2D):
        def call(self, inputs):
            return 2 * super().call(inputs)

    model = keras.Sequential([keras.Input((6, 6, 3)), Doubled(4, 3, name="conv")])
    x = np.ones((1, 6, 6, 3), "float32")
    before = model.predict_on_batch(x)
    kr.enable_randlora(model, 2, "conv")
    np.testing.assert_allclose(model.predict_on_batch(x), before, rtol=1e-6)
    assert isinstance(model.get_layer("conv"), Doubled)


def test_channels_first():
    if BACKEND == "tensorflow":
        pytest.skip("TensorFlow has no such convolution on a CPU.")
    layer = layers.Conv2D(4, 3, data_format="channels_first", name="conv")
    model = keras.Sequential([keras.Input((3, 6, 6)), layer])
    x = np.ones((1, 3, 6, 6), "float32")
    kr.enable_randlora(model, 2, "conv")
    randomize(model)
    tuned = model.predict_on_batch(x)
    kr.merge_randlora(model)
    assert_close(model.predict_on_batch(x), tuned, 1e-5)
