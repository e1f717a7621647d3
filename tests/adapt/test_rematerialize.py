"""Long sequences: rematerialized blocks and accumulated gradients train the same."""

import re

import keras
import keras_hub
import numpy as np
import pytest
from backend import BACKEND, as_numpy, assert_close
from keras import layers
from models import EXAMPLES, compile_model, default_policy, mlp, randomize, tokens
from peaks import next_token_batch, step_peak
from versions import NEEDS_TENSORS_FREED

import keras_randlora as kr

BLOCKS = {
    "llama3": ["transformer_layer_0", "transformer_layer_1"],
    "gemma3": ["decoder_block_0"],
    "bert": ["transformer_layer_0"],
}


def adapted(name, remat, dtype="float32", **options):
    """Return an adapted example whose λ and γ are random, the same each time."""
    with default_policy(dtype):
        model = EXAMPLES[name].build()
    if remat:
        kr.rematerialize(model)
    kr.enable_randlora(model, 3, "all-linear", **options)
    randomize(model, scale=0.01, seed=5)
    return model


def changes(model, batches, *, by_xla=True, **options):
    """Return what one update of plain gradient descent subtracts from λ and γ.

    Args:
        model: The model.
        batches: Its inputs and labels.
        by_xla: Whether XLA compiles the step on TensorFlow, which takes seconds.
        options: Of the optimizer.
    """
    optimizer = keras.optimizers.SGD(1.0, **options)
    compiled = {"jit_compile": "auto"} if by_xla else {}
    compile_model(model, optimizer=optimizer, **compiled)
    before = [as_numpy(v).astype("float64") for v in model.trainable_variables]
    keras.utils.set_random_seed(3)
    for inputs, labels in batches:
        model.train_on_batch(inputs, labels)
    after = [as_numpy(v) for v in model.trainable_variables]
    return [b - a for a, b in zip(after, before, strict=True)]


def assert_same(actual, expected, tolerance):
    assert max(np.max(np.abs(change)) for change in expected) > 0
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, tolerance)


CASES = {
    "llama3": ("llama3", {}),
    "gemma3": ("gemma3", {}),
    "bert": ("bert", {}),
    "dropout": ("llama3", dict(dropout=0.3)),
    "factored": ("llama3", dict(compute="factored")),
    "regenerated": ("llama3", dict(basis_storage="regenerated")),
    "mixed": ("llama3", dict(dtype="mixed_bfloat16")),
}


@pytest.mark.parametrize("case", CASES)
def test_the_gradients_are_the_same(case):
    name, options = CASES[case]
    batches = [(EXAMPLES[name].inputs(), EXAMPLES[name].labels())]
    with_remat, without = (
        # What is compared needs no XLA, which could undo the rematerialization.
        changes(adapted(name, remat, **options), batches, by_xla=remat)
        for remat in (True, False)
    )
    # A compiler rounds bfloat16 at other places.
    assert_same(with_remat, without, 0.05 if case == "mixed" else 2e-5)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_blocks_are_found_and_let_go(name):
    model = EXAMPLES[name].build()
    inputs = EXAMPLES[name].inputs()
    expected = as_numpy(model(inputs))
    found = [path.split("/")[-1] for path in kr.rematerialize(model)]
    assert found == BLOCKS[name]
    np.testing.assert_allclose(as_numpy(model(inputs)), expected, rtol=1e-5, atol=1e-6)
    assert [path.split("/")[-1] for path in kr.rematerialize(model, False)] == found
    assert not any(layer._remat_mode for layer in model._flatten_layers())


def test_a_model_without_blocks_is_refused():
    message = "Model 'mlp' has no numbered blocks, such as 'transformer_layer_0', to"
    with pytest.raises(ValueError, match=re.escape(message)):
        kr.rematerialize(mlp())


def peak_of_llama(remat, collected=True):
    """Return the peak of a step of six adapted blocks, and the plan for it."""
    import keras_hub

    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=50,
        num_layers=6,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=64,
        intermediate_dim=128,
    )
    model = keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)
    options = dict(targets="all-linear", batch=4, sequence=48, remat=remat)
    if remat:
        kr.rematerialize(model)
    planned = kr.plan(model, 8, **options)
    kr.enable_randlora(model, 8, "all-linear")
    return step_peak(model, *next_token_batch(4, 48, 50), collected), planned


@NEEDS_TENSORS_FREED
@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow does not tell")
def test_less_is_kept():
    (whole, _), (remat, planned) = peak_of_llama(False), peak_of_llama(True)
    assert remat < 0.5 * whole
    predicted = planned.activations + planned.logits + planned.temporaries
    assert predicted == pytest.approx(remat, rel=0.25)


@NEEDS_TENSORS_FREED
@pytest.mark.skipif(BACKEND != "torch", reason="others free by themselves")
def test_a_block_is_freed_before_garbage_is_collected():
    whole, remat = (peak_of_llama(remat, collected=False)[0] for remat in (False, True))
    assert remat < 0.6 * whole


@pytest.mark.parametrize("name", ["mlp", "llama3"])
def test_accumulated_gradients_are_those_of_one_batch(name):
    example = EXAMPLES[name]
    inputs, labels = example.inputs(), example.labels()
    if name == "llama3":
        # Without padding: the mean of two means is the mean.
        ids = tokens(np.random.default_rng(2))
        inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    halves = [
        (keras.tree.map_structure(lambda x, part=part: x[part], inputs), labels[part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    whole = changes(adapted(name, False), [(inputs, labels)])
    parts = changes(adapted(name, False), halves, gradient_accumulation_steps=2)
    assert_same(parts, whole, 2e-5)


@pytest.mark.parametrize("kind", ["full", "activations"])
@pytest.mark.skipif(BACKEND == "tensorflow", reason="fails in Keras for any layer")
def test_a_layer_made_in_keras_remat_scope_keeps_its_mode(kind):
    def build(scope):
        with scope:
            return EXAMPLES["mlp"].build()

    plain = build(keras.RematScope(None))
    model = build(keras.RematScope(kind))
    inputs, labels = EXAMPLES["mlp"].inputs(), EXAMPLES["mlp"].labels()
    for each in (plain, model):
        kr.enable_randlora(each, 3, "all-linear")
    assert {layer._remat_mode.mode for layer in model.layers[1:]} == {kind}
    assert_same(
        changes(model, [(inputs, labels)]), changes(plain, [(inputs, labels)]), 2e-5
    )
    kr.disable_randlora(model)
    assert {layer._remat_mode.mode for layer in model.layers[1:]} == {kind}


class LosingBlock(layers.Layer):
    """A block that adds losses and keeps statistics, as a router of experts does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(6, activity_regularizer="l2", name="dense")
        self.norm = layers.BatchNormalization(momentum=0.5, name="norm")

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.norm.build(input_shape)

    def call(self, inputs, training=None):
        hidden = self.dense(inputs)
        self.add_loss(3.0 * keras.ops.mean(hidden**4))
        return self.norm(hidden, training=training)


def test_added_losses_and_statistics_are_kept():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(8, 6)).astype("float32") for _ in range(2))
    found = []
    for remat in (False, True):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        hidden = LosingBlock(name="block_0")(inputs)
        model = keras.Model(inputs, LosingBlock(name="block_1")(hidden))
        if remat:
            assert kr.rematerialize(model) == ["block_0", "block_1"]
        model.compile(keras.optimizers.SGD(0.05), "mse")
        losses = [float(model.train_on_batch(x, y)) for _ in range(3)]
        model(x)
        assert len(model.losses) == 4
        found.append((losses, [as_numpy(w) for w in model.weights]))
    (losses, weights), (again, rematerialized) = found
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    for weight, other in zip(weights, rematerialized, strict=True):
        np.testing.assert_allclose(other, weight, rtol=1e-4, atol=1e-5)
    statistics = model.get_layer("block_0").norm
    assert np.abs(as_numpy(statistics.moving_mean)).min() > 0


def test_routers_of_experts_keep_their_losses():
    sizes = dict(vocabulary_size=9, num_layers=2, num_query_heads=2, hidden_dim=4)
    sizes |= dict(num_key_value_heads=1, intermediate_dim=6, num_experts=2, top_k=1)
    backbone = keras_hub.models.MixtralBackbone(**sizes)
    inputs = {"token_ids": np.ones((1, 4), "int32"), "padding_mask": np.ones((1, 4))}
    losses = []
    for remat in (False, True):
        kr.rematerialize(backbone, remat)
        backbone(inputs, training=True)
        losses.append([float(as_numpy(loss)) for loss in backbone.losses])
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-5)
