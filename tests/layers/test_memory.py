"""A training step keeps no adapted kernel from the forward to the backward pass.

torch is asked what it saves, in test_product.py. XLA decides by itself, so that its
compiled step is looked at here.
"""

import keras
import numpy as np
import pytest
from backend import BACKEND
from keras import layers
from peaks import step_peak
from versions import NEEDS_TENSORS_FREED

import keras_randlora as kr

SIDE, DEPTH, TOKENS = 256, 10, 16
KERNEL_BYTES = 4 * SIDE * SIDE
# Forward: M and x·(W + M). Backward: M again, dy·(W + M)ᵀ, xᵀ·dy and Bᵀ·(xᵀ·dy); the
# first layer's input needs no gradient, so that two of them fall away. A compiler that
# keeps M saves one product a layer.
PRODUCTS = 6 * DEPTH - 2

BASES = {
    "uniform": dict(basis="uniform"),
    "kronecker": dict(basis="kronecker"),
    "int8": dict(basis="sparse"),
    "regenerated": dict(basis_storage="regenerated"),
}


def model_of(**options):
    inputs = outputs = keras.Input((SIDE,))
    for _ in range(DEPTH):
        outputs = layers.Dense(SIDE, "tanh", use_bias=False)(outputs)
    model = keras.Model(inputs, outputs)
    kr.enable_randlora(model, 8, "all-linear", compute="materialized", **options)
    return model


def compiled_by_jax(model):
    """Return the compiled gradient of a loss with respect to λ and γ."""
    import jax

    def loss(trained, frozen, x):
        outputs, _ = model.stateless_call(trained, frozen, x, training=True)
        return keras.ops.sum(outputs**2)

    variables = model.trainable_variables, model.non_trainable_variables
    values = [[variable.value for variable in group] for group in variables]
    x = np.ones((TOKENS, SIDE), "float32")
    return jax.jit(jax.grad(loss)).lower(*values, x).compile()


@pytest.mark.skipif(BACKEND != "jax", reason="asks JAX's compiler")
@pytest.mark.parametrize("basis", BASES)
def test_jax_holds_a_few_kernels_at_a_time(basis):
    step = compiled_by_jax(model_of(**BASES[basis]))
    assert step.memory_analysis().temp_size_in_bytes < 0.75 * DEPTH * KERNEL_BYTES


@pytest.mark.skipif(BACKEND != "jax", reason="asks JAX's compiler")
def test_jax_holds_less_in_strips(in_strips):
    whole = 0.75 * DEPTH * KERNEL_BYTES
    step = compiled_by_jax(model_of(basis="kronecker"))
    assert step.memory_analysis().temp_size_in_bytes < 0.5 * whole


@pytest.mark.skipif(BACKEND != "jax", reason="asks JAX's compiler")
def test_jax_forms_each_update_once_for_each_pass():
    assert compiled_by_jax(model_of()).as_text().count(" dot(") >= PRODUCTS


@pytest.mark.skipif(BACKEND != "tensorflow", reason="asks TensorFlow's compiler")
def test_tensorflow_forms_each_update_once_for_each_pass():
    import tensorflow as tf

    model = model_of()

    @tf.function(jit_compile=True)
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True) ** 2)
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    x = tf.ones((TOKENS, SIDE))
    text = step.experimental_get_compiler_ir(x)(stage="optimized_hlo")
    assert text.count(" dot(") >= PRODUCTS


@pytest.mark.skipif(BACKEND != "torch", reason="counts torch's allocations")
@pytest.mark.parametrize("sides", [(SIDE, SIDE), (4 * SIDE, SIDE), (SIDE, 4 * SIDE)])
@NEEDS_TENSORS_FREED
def test_torch_holds_three_kernels_at_a_time_which_plan_says(sides):
    inputs = keras.Input(sides[:1], name="x")
    model = keras.Model({"x": inputs}, layers.Dense(sides[1], name="d")(inputs))
    options = dict(rank=8, targets="d", compute="materialized")
    planned = kr.plan(model, batch=TOKENS, sequence=1, **options)
    kr.enable_randlora(model, **options)
    x = np.ones((TOKENS, sides[0]), "float32")
    peak = step_peak(model, {"x": x}, np.zeros(TOKENS, "int32"))
    kernel = 4 * sides[0] * sides[1]
    assert kernel < peak < 3.5 * kernel
    needs = planned.activations + planned.logits + planned.temporaries
    assert peak == pytest.approx(needs, rel=0.2 if sides[0] == sides[1] else 0.5)
