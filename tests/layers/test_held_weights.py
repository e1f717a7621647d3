"""Weights that layers hold themselves: experts, projections of one's own."""

import copy
import re

import keras
import numpy as np
import pytest
from backend import BACKEND, as_numpy, assert_close, value_and_gradients
from keras import ops
from models import layers_of, randomize, structure_of, update_by_formula, values_of

import keras_randlora as kr
from keras_randlora.layers import LinearWeight, holder_of

EXPERTS, WIDTH, INNER = 3, 6, 10
AXES = {"*/experts/up": "batch in out", "*/experts/down": "batch out in"}
ALL = ["mixture/experts/up", "mixture/experts/down", "mixture/project"]


@keras.saving.register_keras_serializable("tests")
class Experts(keras.layers.Layer):
    """Experts of two weights each; the second is held `(experts, out, in)`."""

    def build(self, input_shape):
        self.up = self.add_weight(name="up", shape=(EXPERTS, WIDTH, INNER))
        self._down = self.add_weight(name="down", shape=(EXPERTS, WIDTH, INNER))

    def call(self, x):
        inner = ops.tanh(ops.einsum("bti,eio->bteo", x, self.up))
        return ops.einsum("btei,eoi->bteo", inner, self._down)


@keras.saving.register_keras_serializable("tests")
class Mixture(keras.layers.Layer):
    """A router, experts, and a matrix of its own that it reads twice."""

    def build(self, input_shape):
        self.router = keras.layers.Dense(
            EXPERTS, name="router", dtype=self.dtype_policy
        )
        self.router.build(input_shape)
        self.experts = Experts(name="experts", dtype=self.dtype_policy)
        self.experts.build(input_shape)
        self.project = self.add_weight(name="project", shape=(WIDTH, WIDTH))
        self.scale = self.add_weight(name="scale", shape=(WIDTH,), initializer="ones")

    def call(self, x):
        x = x + ops.matmul(ops.tanh(ops.matmul(x, self.project)), self.project)
        chosen = ops.softmax(self.router(x))
        return self.scale * ops.sum(chosen[..., None] * self.experts(x), axis=-2)

    def compute_output_shape(self, input_shape):
        return input_shape


def mixture(dtype=None):
    """Return a functional model of a mixture of experts and a head."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((4, WIDTH))
    x = Mixture(name="mixture", dtype=dtype)(inputs)
    outputs = keras.layers.Dense(3, name="head", dtype=dtype)(x)
    return keras.Model(inputs, outputs, name="mixture_model")


def adapted(dtype=None, **options):
    """Return an adapted mixture whose update is as large as its kernels."""
    model = mixture(dtype)
    axes = {**AXES, "mixture/project": "in out"}
    options = {"rank": 2, "targets": ALL, "weight_axes": axes, **options}
    kr.enable_randlora(model, **options)
    randomize(model, scale=0.2)
    return model


def batch(seed=0):
    return np.random.default_rng(seed).standard_normal((2, 4, WIDTH)).astype("float32")


def weights_of(model):
    """Return the adapted weights of a model, by name."""
    return {x.name: x for x in layers_of(model) if isinstance(x, LinearWeight)}


def by_formula(weight):
    """Return an adapted weight in float64 with the update of the reference's loops."""
    layout, base = weight.kernel_layout(), as_numpy(weight._kernel).astype("float64")
    return base + as_numpy(layout.to_kernel(update_by_formula(weight)))


def expected_outputs(model, x):
    """Return the model's outputs in float64, expert after expert."""
    up, down, project = (
        by_formula(weights_of(model)[n]) for n in ("up", "down", "project")
    )
    layer, head = model.get_layer("mixture"), model.get_layer("head")
    x = x.astype("float64")
    x = x + np.tanh(x @ project) @ project
    router, bias = map(as_numpy, layer.router.weights)
    scores = np.exp(x @ router + bias)
    chosen = scores / scores.sum(-1, keepdims=True)
    mixed = sum(
        chosen[..., e : e + 1] * (np.tanh(x @ up[e]) @ down[e].T)
        for e in range(EXPERTS)
    )
    kernel, head_bias = map(as_numpy, head.weights)
    return as_numpy(layer.scale) * mixed @ kernel + head_bias


@pytest.mark.parametrize("shared", ["none", "lambda", "gamma"])
@pytest.mark.parametrize("basis", ["uniform", "kronecker"])
def test_the_product_is_that_of_the_formula(shared, basis):
    model = adapted(shared_in_batch=shared, basis=basis)
    shapes = {n: w.randlora.shape for n, w in weights_of(model).items()}
    counts = {"none": (3, 3), "lambda": (1, 3), "gamma": (3, 1)}[shared]
    assert shapes["up"].lambda_shape == (counts[0], 2, 3)
    assert shapes["up"].gamma_shape == (counts[1], 3, WIDTH)
    assert shapes["project"].lambda_shape == (2, 3)
    x = batch()
    assert_close(model.predict_on_batch(x), expected_outputs(model, x), 1e-5)


@pytest.mark.parametrize("shared", ["none", "lambda", "gamma"])
@pytest.mark.parametrize("name", ["up", "down", "project"])
def test_the_gradient_is_that_of_an_explicit_sum(name, shared):
    weight = weights_of(adapted(shared_in_batch=shared))[name]
    adapter, layout = weight.randlora, weight.kernel_layout()
    upstream = np.random.default_rng(1).standard_normal(layout.kernel_shape)
    upstream = upstream.astype("float32")
    factors = [as_numpy(adapter.lambda_), as_numpy(adapter.gamma)]
    bases = adapter.bank.bases(adapter.shape, "float32")
    held = [ops.convert_to_tensor(weight._kernel)]

    def ours(lambda_, gamma):
        return adapter.product.kernel_with_update(held, lambda_, gamma)

    def explicit(lambda_, gamma):
        basis_a, basis_b = bases
        columns = ops.reshape(basis_b, (-1, *factors[0].shape[-2:]))
        if layout.batch is None:
            lambda_, gamma = lambda_[None], gamma[None]
        count = max(lambda_.shape[0], gamma.shape[0])
        lambda_ = ops.broadcast_to(lambda_, (count, *lambda_.shape[1:]))
        gamma = ops.broadcast_to(gamma, (count, *gamma.shape[1:]))
        sides = "eio" if not adapter.shape.transposed else "eoi"
        matrix = ops.einsum(
            f"irj,erj,ro,ejo->{sides}", columns, lambda_, basis_a, gamma
        )
        matrix = matrix if layout.batch else matrix[0]
        scale = weight.options.alpha / weight.options.rank
        return held[0] + layout.to_kernel(scale * matrix)

    value, gradients = value_and_gradients(ours, *factors, upstream=upstream)
    wanted, slopes = value_and_gradients(explicit, *factors, upstream=upstream)
    assert_close(value, wanted, 1e-5)
    for gradient, slope in zip(gradients, slopes, strict=True):
        assert_close(gradient, slope, 1e-5)


def test_adapting_changes_nothing_until_training():
    x, model = batch(), mixture()
    for weight in model.trainable_weights:
        weight.trainable = False  # torch multiplies by frozen weights in another order
    before = model.predict_on_batch(x)
    kr.enable_randlora(model, rank=2, targets=ALL[:2], weight_axes=AXES)
    np.testing.assert_array_equal(model.predict_on_batch(x), before)


@pytest.mark.parametrize("jit", [False, True], ids=["plain", "jit"])
def test_training_moves_the_updates_only(jit):
    if jit and BACKEND == "torch":
        pytest.skip(
            "Keras compiles with torch.compile there, which is tried elsewhere."
        )
    model = adapted()
    frozen = {w.path: as_numpy(w).copy() for w in model.non_trainable_weights}
    trained = {w.path: as_numpy(w).copy() for w in model.trainable_weights}
    model.compile(
        keras.optimizers.Adam(1e-3, gradient_accumulation_steps=2),
        "mse",
        jit_compile=jit,
    )
    model.fit(batch(), np.ones((2, 4, 3)), batch_size=1, epochs=3, verbose=0)
    assert all(
        np.array_equal(as_numpy(w), frozen[w.path]) for w in model.non_trainable_weights
    )
    assert all((as_numpy(w) != trained[w.path]).any() for w in model.trainable_weights)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_half_precision(policy):
    model = adapted(policy)
    weight = weights_of(model)["up"]
    assert (weight.randlora.lambda_.dtype, weight.randlora.gamma.dtype) == (
        "float32",
    ) * 2
    outputs = model.predict_on_batch(batch()).astype("float32")
    assert_close(outputs, expected_outputs(model, batch()), 0.1)


def test_verbs_merge_switch_and_restore():
    x, model = batch(), mixture()
    plain, structure = model.predict_on_batch(x), structure_of(model)
    base = values_of(model)
    kr.enable_randlora(model, rank=2, targets=ALL[:2], weight_axes=AXES)
    randomize(model, scale=0.2)
    tuned = model.predict_on_batch(x)
    assert np.abs(tuned - plain).max() > 1e-3
    with kr.base_only(model):
        assert_close(model.predict_on_batch(x), plain, 1e-6)
    with kr.merged(model):
        assert structure_of(model)["layers"][0][1] is structure["layers"][0][1]
        assert_close(model.predict_on_batch(x), tuned, 1e-5)
    np.testing.assert_array_equal(model.predict_on_batch(x), tuned)
    kr.disable_randlora(model)
    assert values_of(model) == base
    assert structure_of(model) == structure
    kr.enable_randlora(model, rank=2, targets=ALL[:2], weight_axes=AXES)
    randomize(model, scale=0.2)
    kr.merge_randlora(model)
    assert structure_of(model) == structure
    assert_close(model.predict_on_batch(x), tuned, 1e-5)


def test_adapter_files_carry_the_axes(tmp_path):
    model, x = adapted(), batch()
    kr.save_adapter(model, tmp_path / "a.safetensors")
    fresh = mixture()
    report = kr.load_adapter(fresh, tmp_path / "a.safetensors")
    assert {layer.path for layer in report.layers} == {*ALL}
    np.testing.assert_array_equal(fresh.predict_on_batch(x), model.predict_on_batch(x))
    kr.merge_adapters(plain := mixture(), {tmp_path / "a.safetensors": 1.0})
    assert_close(plain.predict_on_batch(x), model.predict_on_batch(x), 1e-5)


def test_weights_files_go_both_ways_with_plain_models(tmp_path):
    model, x = adapted(), batch()
    model.save_weights(tmp_path / "tuned.weights.h5")
    plain = mixture()
    untuned = plain.predict_on_batch(x)
    plain.save_weights(tmp_path / "plain.weights.h5")
    plain.load_weights(tmp_path / "tuned.weights.h5")
    assert_close(plain.predict_on_batch(x), model.predict_on_batch(x), 1e-5)
    again = adapted()
    for weight in again.get_layer("mixture").experts._trainable_variables:
        weight.assign(as_numpy(weight) + 1)
    again.load_weights(tmp_path / "tuned.weights.h5")
    np.testing.assert_array_equal(again.predict_on_batch(x), model.predict_on_batch(x))
    again.load_weights(tmp_path / "plain.weights.h5")
    assert_close(again.predict_on_batch(x), untuned, 1e-6)


@pytest.mark.parametrize("way", ["file", "deepcopy"])
def test_keras_files_and_copies_come_back_adapted(way, tmp_path):
    model, x = adapted(), batch()
    model.compile("adam", "mse")
    model.train_on_batch(x, np.ones((2, 4, 3)))
    if way == "file":
        model.save(tmp_path / "model.keras")
        other = keras.saving.load_model(tmp_path / "model.keras")
    else:
        other = copy.deepcopy(model)
    np.testing.assert_array_equal(other.predict_on_batch(x), model.predict_on_batch(x))
    assert [w.path for w in other.trainable_weights] == [
        w.path for w in model.trainable_weights
    ]
    kr.save_adapter(other, tmp_path / "a.safetensors")
    again = mixture()
    kr.load_adapter(again, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(again.predict_on_batch(x), model.predict_on_batch(x))
    again = copy.deepcopy(other)  # a second time: classes are worn once only
    np.testing.assert_array_equal(again.predict_on_batch(x), model.predict_on_batch(x))


def test_rematerialized_experts_have_the_same_gradients():
    results = []
    for remat in (False, True):
        keras.utils.set_random_seed(5)
        blocks = [Mixture(name=f"block_{i}") for i in range(2)]
        model = keras.Sequential([keras.Input((4, WIDTH)), *blocks])
        kr.enable_randlora(model, 2, [*AXES], weight_axes=AXES)
        randomize(model, scale=0.2)
        if remat:
            assert len(kr.rematerialize(model)) == 2
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.train_on_batch(batch(), np.ones((2, 4, WIDTH)))
        results.append(kr.get_adapter(model))
    for name, array in results[0].items():
        assert_close(results[1][name], array, 1e-5)


def test_a_weight_of_the_model_itself():
    class Model(keras.Model):
        def build(self, input_shape):
            self.matrix = self.add_weight(name="matrix", shape=(WIDTH, 3))

        def call(self, x):
            return ops.matmul(x, self.matrix)

    model, x = Model(name="bare"), batch()
    before = model.predict_on_batch(x)
    report = kr.enable_randlora(model, 2, "matrix", weight_axes={"matrix": "in out"})
    assert [layer.path for layer in report.layers] == ["matrix"]
    randomize(model)
    tuned = model.predict_on_batch(x)
    assert np.abs(tuned - before).max() > 1e-3
    kr.merge_randlora(model)
    assert type(model) is Model
    assert_close(model.predict_on_batch(x), tuned, 1e-5)


REFUSED = {
    "unknown axes": (
        dict(targets="*/up"),
        "Target '*/up' matches 'mixture/experts/up', a weight of shape (3, 6, 10). If "
        "it is used in a matmul, name its axes, such as weight_axes={'*/up': 'batch in",
    ),
    "too few words": (
        dict(targets="*/up", weight_axes={"*/up": "in out"}),
        "Weight 'mixture/experts/up' cannot be adapted. Give one word for each axis. "
        "Received: axes='in out' for a weight of shape (3, 6, 10).",
    ),
    "another word": (
        dict(targets="*/up", weight_axes={"*/up": "expert in out"}),
        "Axes are described by ['batch', 'in', 'out'], not by 'expert'.",
    ),
    "nothing summed": (
        dict(targets="*/up", weight_axes={"*/up": "batch batch out"}),
        "has an axis 'in' at least, which is summed over, and an axis 'out'.",
    ),
    "no such weight": (
        dict(targets="head", weight_axes={"*/upp": "batch in out"}),
        "`weight_axes` names '*/upp', but no layer of 'mixture_model' holds a weight "
        "of two or more axes of that name.",
    ),
    "one axis": (
        dict(targets="mixture/scale", weight_axes={"mixture/scale": "in out"}),
        "`weight_axes` names 'mixture/scale', but no layer of 'mixture_model' holds",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_leave_the_model(case):
    options, message = REFUSED[case]
    model = mixture()
    before = structure_of(model), values_of(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        kr.enable_randlora(model, rank=2, **options)
    assert (structure_of(model), values_of(model)) == before


def test_dropout_that_does_not_reach_a_weight_is_said():
    message = "`dropout` has no effect on 'mixture/experts/up'"
    with pytest.warns(UserWarning, match=message):
        kr.enable_randlora(mixture(), 2, ALL[:2], weight_axes=AXES, dropout=0.1)


def test_a_weight_of_two_layers_is_refused():
    model = mixture()
    layer = model.get_layer("mixture")
    shared = layer.experts.up
    layer.experts._tracker.unlock()
    layer.experts.other = shared
    layer.experts._tracker.lock()
    axes = {"*/experts/up": "batch in out", "*/experts/other": "batch in out"}
    with pytest.raises(ValueError, match="share one kernel"):
        kr.enable_randlora(model, 2, [*axes], weight_axes=axes)


def test_the_holder_is_known():
    model = adapted()
    experts = model.get_layer("mixture").experts
    assert holder_of(weights_of(model)["up"]) is experts
    assert isinstance(experts, Experts)
    assert type(experts).__name__ == "Experts"
