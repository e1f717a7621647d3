"""Half precision: what stays float32, what training reaches, what overflow does."""

import contextlib

import keras
import numpy as np
import pytest
from backend import as_numpy
from keras import ops
from models import BATCH, EXAMPLES, compile_model, default_policy

import keras_randlora as kr
from keras_randlora.layers import RandLoRADense

POLICIES = ("bfloat16", "mixed_bfloat16", "mixed_float16")
STEPS = 200
LEARNING_RATE = 1e-3


@pytest.fixture
def in_policy():
    """Return a function that builds an adapted model in a policy, and leaves it set."""
    with contextlib.ExitStack() as policies:

        def build(policy, **options):
            policies.enter_context(default_policy(policy))
            model = EXAMPLES["mlp"].build()
            kr.enable_randlora(model, rank=2, targets="all-linear", **options)
            return model

        yield build


def frozen_values(model):
    trained = {variable.path for variable in model.trainable_variables}
    frozen = [v for v in model.variables if v.path not in trained]
    return {v.path: as_numpy(v).tobytes() for v in frozen if "seed" not in v.path}


def adapter_bits(model):
    return {key: value.tobytes() for key, value in kr.get_adapter(model).items()}


@pytest.mark.parametrize("policy", POLICIES)
def test_adapters_and_their_moments_are_float32(policy, in_policy):
    model = in_policy(policy)
    compile_model(model, optimizer=keras.optimizers.AdamW(LEARNING_RATE))
    model.train_on_batch(EXAMPLES["mlp"].inputs(), EXAMPLES["mlp"].labels())
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    moments = [*optimizer._momentums, *optimizer._velocities]
    assert len(moments) == 2 * len(model.trainable_variables)
    assert {v.dtype for v in (*model.trainable_variables, *moments)} == {"float32"}
    kernel = "bfloat16" if policy == "bfloat16" else "float32"
    adapted = [layer for layer in model._flatten_layers() if hasattr(layer, "randlora")]
    assert {layer._kernel.dtype for layer in adapted} == {kernel}


def test_training_goes_as_far_as_in_float32(in_policy):
    """At the default alpha, over 200 steps."""
    example = EXAMPLES["mlp"]
    final = {}
    for policy in ("float32", *POLICIES):
        model = in_policy(policy)
        compile_model(model, optimizer=keras.optimizers.AdamW(LEARNING_RATE))
        batch = example.inputs(), example.labels()
        losses = [float(model.train_on_batch(*batch)) for _ in range(STEPS)]
        assert np.all(np.isfinite(losses))
        final[policy] = losses[-1] / losses[0]
    assert final["float32"] < 0.7
    for policy in POLICIES:
        assert final[policy] < final["float32"] + 0.1, final


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("compute", ["materialized", "factored"])
def test_outputs_are_those_of_float32_up_to_rounding(policy, compute, in_policy):
    models = [in_policy(used, compute=compute) for used in ("float32", policy)]
    rng = np.random.default_rng(2)
    for exact, rounded in zip(*(model.weights for model in models), strict=True):
        if "randlora_bank" in exact.path:  # which takes the bases of its seed only
            continue
        value = as_numpy(exact) + 0.02 * rng.standard_normal(exact.shape)
        exact.assign(value)
        rounded.assign(value)
    exact, rounded = (
        EXAMPLES["mlp"].outputs(model).astype("float32") for model in models
    )
    scale = np.max(np.abs(exact))
    step = 2.0**-11 if policy == "mixed_float16" else 2.0**-8
    error = np.max(np.abs(rounded - exact))
    assert 0 < error < 8 * step * scale


@pytest.mark.parametrize("storage", ["stored", "regenerated"])
def test_kernel_and_update_are_added_in_float32(storage):
    """1 + 2**-9 is 1 in bfloat16: rounded before the sum, W + M would be zero."""
    layer = RandLoRADense(
        3,
        rank=3,
        alpha=3,
        num_bases=1,
        basis="binary",
        basis_storage=storage,
        compute="materialized",
        use_bias=False,
        dtype="mixed_bfloat16",
    )
    layer.build((None, 3))
    layer.randlora.lambda_.assign(np.ones((3, 1)))
    layer.randlora.gamma.assign(np.ones((1, 3)))
    update = as_numpy(layer.randlora.update())  # small integers, exact in bfloat16
    assert np.any(update)
    layer._kernel.assign(-update + 2.0**-9)
    outputs = as_numpy(layer(np.eye(3, dtype="float32"))).astype("float32")
    np.testing.assert_array_equal(outputs, np.full((3, 3), 2.0**-9))


@pytest.mark.parametrize("leave", [kr.disable_randlora, kr.merge_randlora])
def test_a_plain_layer_computes_in_half_precision_again(leave, in_policy):
    model = in_policy("mixed_bfloat16")
    plain = EXAMPLES["mlp"].build()
    leave(model)  # the update is zero
    inputs = ops.cast(EXAMPLES["mlp"].inputs(), "bfloat16")
    layers = [m.get_layer("hidden_1") for m in (model, plain)]
    found, expected = (as_numpy(layer(inputs)) for layer in layers)
    assert found.dtype == expected.dtype == "bfloat16"
    assert np.array_equal(found, expected)
    assert layers[0]._kernel._autocast


def test_overflow_skips_the_step_and_touches_nothing(in_policy):
    """`compile` puts a LossScaleOptimizer around the optimizer in mixed_float16."""
    example = EXAMPLES["mlp"]
    model = in_policy("mixed_float16")
    compile_model(model, optimizer=keras.optimizers.AdamW(LEARNING_RATE))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    inputs, labels = example.inputs(), example.labels()
    model.train_on_batch(inputs, labels)
    before, frozen = adapter_bits(model), frozen_values(model)
    model.train_on_batch(np.full_like(inputs, 1e30), labels)
    assert adapter_bits(model) == before
    assert frozen_values(model) == frozen
    model.train_on_batch(inputs, labels)
    assert adapter_bits(model) != before
    assert all(np.all(np.isfinite(a)) for a in kr.get_adapter(model).values())


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_gradients_that_are_not_numbers_leave_bases_and_kernels_alone(
    policy, in_policy
):
    example = EXAMPLES["mlp"]
    model = in_policy(policy)
    compile_model(model, optimizer=keras.optimizers.AdamW(LEARNING_RATE))
    good = example.outputs(model)
    frozen = frozen_values(model)
    weights = np.full((BATCH,), np.nan, "float32")
    model.train_on_batch(example.inputs(), example.labels(), sample_weight=weights)
    assert frozen_values(model) == frozen
    for layer in model._flatten_layers():
        if hasattr(layer, "randlora"):
            layer.randlora.reset()
    np.testing.assert_array_equal(example.outputs(model), good)
