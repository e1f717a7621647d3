"""Function transforms of adapted models, against the explicit dense kernel W + M."""

import functools

import keras
import numpy as np
import pytest
from backend import BACKEND, as_numpy, assert_close
from keras import layers, ops
from versions import NEEDS_TRACEABLE_LAYERS

import keras_randlora as kr

TOLERANCE = 2e-5
X = np.random.default_rng(1).standard_normal((4, 3, 6)).astype("float32")
Y = np.random.default_rng(2).standard_normal((4, 3, 4)).astype("float32")
OPTIONS = {
    "materialized": dict(compute="materialized"),
    "factored": dict(compute="factored"),
    "auto": dict(),
    "very many zeros": dict(basis="ternary", sparsity=20, compute="materialized"),
    "very many zeros, factored": dict(basis="ternary", sparsity=20, compute="factored"),
    "kronecker": dict(basis="kronecker", compute="factored"),
    "kronecker in strips": dict(basis="kronecker", compute="materialized"),
    "regenerated": dict(basis_storage="regenerated"),
}
every_option = pytest.mark.parametrize("option", OPTIONS)

pytestmark = [
    # torch uses what it calls deprecated itself.
    pytest.mark.filterwarnings(
        "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
    ),
    pytest.mark.usefixtures("in_strips"),
]
functional = pytest.mark.skipif(
    BACKEND == "tensorflow", reason="TensorFlow does not transform functions"
)


@functools.cache
def adapted_model(option):
    """Return a model whose kernels are wider and narrower than they are tall.

    Its kernels are the same for all options. No test changes it.
    """
    keras.utils.set_random_seed(7)
    inputs = keras.Input((3, 6))
    hidden = layers.Dense(9, "tanh", name="up")(inputs)
    query = layers.EinsumDense("btd,ndh->btnh", (None, 2, 5), name="query")(hidden)
    outputs = layers.Dense(4, name="down")(layers.Reshape((3, 10))(query))
    model = keras.Model(inputs, outputs)
    kr.enable_randlora(model, rank=2, alpha=4, targets="all-linear", **OPTIONS[option])
    draw = np.random.default_rng(3).standard_normal
    for variable in model.trainable_variables:
        variable.assign(0.3 * draw(variable.shape))
    return model


def dense(model, trained, x):
    """Return the outputs by way of the kernels `W + M`, formed and kept.

    Args:
        trained: The values of the trainable variables by path.
    """
    for name in ("up", "query", "down"):
        layer = model.get_layer(name)
        product = layer.randlora.product
        shape = product.shape
        basis_a, basis_b = product.bank.bases(shape, "float32")
        basis_b = ops.reshape(basis_b, (shape.larger, shape.rank, shape.num_bases))
        factors = (trained[v.path] for v in layer.randlora.trainable_variables)
        lambda_, gamma = factors
        update = ops.einsum("lkj,kj,ks,js->ls", basis_b, lambda_, basis_a, gamma)
        update = ops.transpose(update) if shape.inputs <= shape.outputs else update
        update = product.layout.to_kernel(product.scale * update)
        kernel = ops.convert_to_tensor(layer._kernel) + update
        x = product.layout.apply(ops.reshape(x, (-1, 3, x.shape[-1])), kernel)
        if layer.bias is not None:
            x = x + trained.get(layer.bias.path, layer.bias.value)
        x = ops.tanh(x) if name == "up" else x
        x = ops.reshape(x, (-1, 3, 10)) if name == "query" else x
    return x


def called(model, trained, x):
    """Return the outputs of the adapted model itself."""
    values = [trained[v.path] for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    return model.stateless_call(values, others, x)[0]


def loss(outputs_of, model, trained, x, y):
    return ((outputs_of(model, trained, x[None])[0] - y) ** 2).sum()


def batch_loss(outputs_of, model, trained):
    x, y = ops.convert_to_tensor(X), ops.convert_to_tensor(Y)
    return ((outputs_of(model, trained, x) - y) ** 2).sum()


def values_of(model):
    """Return copies of the trainable variables by path."""
    return {
        v.path: ops.convert_to_tensor(as_numpy(v)) for v in model.trainable_variables
    }


def transforms():
    """Return the transforms of the backend, each of a function of the model's values.

    A function `(outputs_of, model, values)` to a nest of tensors.
    """
    if BACKEND == "jax":
        import jax as func
    else:
        import torch.func as func

    def samples(outputs_of, model, values):
        one = functools.partial(loss, outputs_of, model)
        return func.vmap(func.grad(one), (None, 0, 0))(
            values, ops.convert_to_tensor(X), ops.convert_to_tensor(Y)
        )

    def jvp(outputs_of, model, values):
        total = functools.partial(batch_loss, outputs_of, model)
        along = {name: ops.cos(value) for name, value in values.items()}
        return func.jvp(total, (values,), (along,))

    def inputs(transform, outputs_of, model, values):
        def of_input(x):
            return outputs_of(model, values, x[None])[0]

        return transform(of_input)(ops.convert_to_tensor(X[0]))

    def of_values(transform, outputs_of, model, values):
        return transform(functools.partial(batch_loss, outputs_of, model))(values)

    def linearize(outputs_of, model, values):
        total = functools.partial(batch_loss, outputs_of, model)
        outputs, linear = func.linearize(total, values)
        return outputs, linear({name: ops.cos(v) for name, v in values.items()})

    def small_hessian(outputs_of, model, values):
        name = next(path for path in values if path.endswith("down/randlora/lambda"))

        def of_one(value):
            return batch_loss(outputs_of, model, {**values, name: value})

        return func.hessian(of_one)(values[name])

    found = {
        "grad": functools.partial(of_values, func.grad),
        "vmap(grad)": samples,
        "jvp": jvp,
        "jacfwd": functools.partial(of_values, func.jacfwd),
        "jacrev of inputs": functools.partial(inputs, func.jacrev),
        "jacfwd of inputs": functools.partial(inputs, func.jacfwd),
        "hessian": small_hessian,
    }
    if BACKEND == "jax":
        found["linearize"] = linearize
        found["jit(jacfwd)"] = functools.partial(
            of_values, lambda function: func.jit(func.jacfwd(function))
        )
        found["jacfwd(jit)"] = functools.partial(
            of_values, lambda function: func.jacfwd(func.jit(function))
        )
        found["grad(checkpoint)"] = functools.partial(
            of_values, lambda function: func.grad(func.checkpoint(function))
        )
    return found


def compiled(function):
    """Return the function as one program on JAX, which else compiles each operation."""
    if BACKEND != "jax":
        return function
    import jax

    return jax.jit(function)


NAMES = [] if BACKEND == "tensorflow" else list(transforms())


def bases_of(option):
    """Return the name of an option that has the same bases."""
    basis = OPTIONS[option].get("basis")
    return next(name for name in OPTIONS if OPTIONS[name].get("basis") == basis)


@functools.cache
def of_the_dense_kernel(name, option):
    """Return what a transform gives of the dense kernel."""
    model = adapted_model(option)
    at_once = compiled(functools.partial(transforms()[name], dense, model))
    return keras.tree.flatten(at_once(values_of(model)))


@functional
@every_option
@pytest.mark.parametrize("name", NAMES)
def test_a_transform_gives_what_it_gives_of_the_dense_kernel(name, option):
    model = adapted_model(option)
    actual = keras.tree.flatten(transforms()[name](called, model, values_of(model)))
    expected = of_the_dense_kernel(name, bases_of(option))
    assert len(actual) == len(expected) > 0
    for found, wanted in zip(actual, expected, strict=True):
        assert np.any(as_numpy(wanted))
        assert_close(as_numpy(found), as_numpy(wanted), TOLERANCE)


@functional
@every_option
def test_gradients_of_samples_are_those_taken_one_by_one(option):
    model = adapted_model(option)
    values = values_of(model)
    together = transforms()["vmap(grad)"](called, model, values)
    one = transforms()["grad"]
    for i in range(len(X)):

        def outputs_of(model, values, x, i=i):
            """Return the outputs of one sample, and the labels for the others."""
            mine = called(model, values, ops.convert_to_tensor(X[i : i + 1]))
            return ops.concatenate(
                [
                    *map(ops.convert_to_tensor, (Y[:i],)),
                    mine,
                    ops.convert_to_tensor(Y[i + 1 :]),
                ],
                axis=0,
            )

        alone = one(outputs_of, model, values)
        for path, gradient in alone.items():
            assert_close(as_numpy(together[path][i]), as_numpy(gradient), TOLERANCE)


@NEEDS_TRACEABLE_LAYERS
@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Dynamo detected.*dtypes.py:UserWarning")  # Keras's
@every_option
def test_torch_compiles_a_training_step_as_a_whole(option):
    import torch

    model = adapted_model(option)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)

    def gradients(call):
        total = ((call(x) - y) ** 2).sum()
        wanted = [v.value for v in model.trainable_variables]
        return torch.autograd.grad(total, wanted)

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for found, wanted in zip(gradients(compiled), gradients(model), strict=True):
        assert_close(as_numpy(found), as_numpy(wanted), TOLERANCE)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's tape")
@every_option
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_tape_gives_the_gradient_of_each_sample(option, compiled):
    import tensorflow as tf

    model = adapted_model(option)
    variables = [v.value for v in model.trainable_variables]

    def samples():
        with tf.GradientTape() as tape:
            losses = tf.reduce_sum((model(tf.constant(X)) - Y) ** 2, axis=(1, 2))
        return tape.jacobian(losses, variables)

    def one(i):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum((model(tf.constant(X[i : i + 1])) - Y[i]) ** 2)
        return tape.gradient(total, variables)

    together = (tf.function(samples) if compiled else samples)()
    for i in range(len(X)):
        for found, wanted in zip(together, one(i), strict=True):
            assert_close(as_numpy(found[i]), as_numpy(wanted), TOLERANCE)
