"""DoRA, NoLA and LoRA of whole kernels, against their papers in NumPy float64."""

import keras
import numpy as np
import pytest
from keras import ops
from models import EXAMPLES

from examples import methods
from examples.reference_layers import ADAPTERS, NOLA_MATRICES, nola
from keras_randlora.update.layouts import dense_layout, einsum_layout

KERNELS = {
    "dense": (keras.layers.Dense(5), (4, 6), dense_layout((6, 5))),
    "heads": (
        keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"),
        (4, 7, 6),
        einsum_layout("abc,cde->abde", (6, 2, 3)),
    ),
    "output": (
        keras.layers.EinsumDense("abcd,cde->abe", (None, 5), bias_axes="e"),
        (4, 7, 2, 3),
        einsum_layout("abcd,cde->abe", (2, 3, 5)),
    ),
}


def reference(kind, values, matrix):
    """Return the matrix that a layer multiplies by, in NumPy float64."""
    if kind == "nola":
        count = len(values["alpha"])
        a = sum(w * m for w, m in zip(values["alpha"], values["bases_a"], strict=True))
        b = sum(w * m for w, m in zip(values["beta"], values["bases_b"], strict=True))
        return matrix + a @ b / count
    changed = matrix + values["lora_a"] @ values["lora_b"]
    if kind == "matrixlora":
        return changed
    columns = [
        magnitude * column / np.sqrt(column @ column)
        for magnitude, column in zip(values["magnitude"], changed.T, strict=True)
    ]
    return np.stack(columns, axis=1)


NAMES = {
    "matrixlora": ("lora_a", "lora_b"),
    "dora": ("lora_a", "lora_b", "magnitude"),
    "nola": ("alpha", "beta"),
}


def adapted(kind, rank=2, form="dense"):
    """Return a model of one layer that is adapted, its input and the kernel before."""
    plain, shape, layout = KERNELS[form]
    layer = type(plain).from_config({**plain.get_config(), "name": "linear"})
    inputs = keras.Input(shape[1:])
    model = keras.Model(inputs, layer(inputs))
    before = layout.to_matrix(ops.convert_to_numpy(layer.kernel))
    methods.adapt(model, f"{kind}-{rank}", others=ADAPTERS)
    x = np.random.default_rng(1).standard_normal(shape).astype("float32")
    return model, layer, x, np.asarray(before, "float64"), layout


def values_of(layer, kind):
    names = NAMES[kind] + (("bases_a", "bases_b") if kind == "nola" else ())
    return {
        name: np.asarray(ops.convert_to_numpy(getattr(layer, name)), "float64")
        for name in names
    }


def close(found, expected):
    found, expected = (ops.convert_to_numpy(x) for x in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", KERNELS)
@pytest.mark.parametrize("kind", NAMES)
def test_layers_compute_what_their_papers_say(kind, form):
    model, layer, x, before, layout = adapted(kind, form=form)
    assert {v.name for v in model.trainable_variables} == set(NAMES[kind])
    plain = layout.apply(x, np.asarray(layout.to_kernel(before), "float32"))
    close(model(x), plain)  # so far, no update
    rng = np.random.default_rng(2)
    for name in NAMES[kind]:
        variable = getattr(layer, name)
        variable.assign(rng.standard_normal(variable.shape))
    matrix = reference(kind, values_of(layer, kind), before)
    assert np.abs(matrix - before).max() > 0.1
    kernel = np.asarray(layout.to_kernel(matrix), "float32")
    close(model(x), layout.apply(x, kernel))


def test_numbers_that_are_trained():
    counts = {}
    for kind in NAMES:
        model = EXAMPLES["mlp"].build()  # kernels 6×10, 10×5, 5×3
        counts[kind] = methods.adapt(model, f"{kind}-2", others=ADAPTERS)
    lora = 2 * (16 + 15 + 8)
    nola = 3 * 2 * NOLA_MATRICES
    assert counts == {"matrixlora": lora, "dora": lora + 10 + 5 + 3, "nola": nola}


def test_nola_shares_its_matrices():
    model = EXAMPLES["sequential"].build()
    others = {"nola": nola}
    methods.adapt(model, "nola-2", seed=5, others=others)
    frozen = {v.path for v in model.non_trainable_variables if "nola" in v.path}
    sizes = {f"nola/inputs_{n}" for n in (6, 10, 5)}
    assert frozen == sizes | {f"nola/outputs_{n}" for n in (10, 5, 3)}
    again = EXAMPLES["sequential"].build()
    methods.adapt(again, "nola-2", seed=5, others=others)
    for mine, other in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(mine), ops.convert_to_numpy(other)
        )


class Listed(keras.Model):
    """A model that holds its layer in a list, as keras-hub's backbones do."""

    def __init__(self):
        super().__init__()
        self.blocks = [keras.layers.Dense(5, use_bias=False, name="linear")]

    def call(self, inputs):
        return self.blocks[0](inputs)


def product(weights, outputs):
    return ops.sum(weights * outputs, axis=-1)


@pytest.mark.parametrize("kind", NAMES)
def test_two_steps_of_gradient_descent(kind):
    """The norm of DoRA is constant in the gradient; gradients do not add up."""
    model, rng, rate = Listed(), np.random.default_rng(3), 0.1
    x, y = (rng.standard_normal((4, n)).astype("float32") for n in (6, 5))
    model(x)
    layer = model.blocks[0]
    before = np.asarray(ops.convert_to_numpy(layer.kernel), "float64")
    methods.adapt(model, f"{kind}-2", others=ADAPTERS)
    for name in ("lora_b", "beta"):
        if name in NAMES[kind]:
            variable = getattr(layer, name)
            variable.assign(0.3 * rng.standard_normal(variable.shape))
    values = values_of(layer, kind)
    model.compile(keras.optimizers.SGD(rate), loss=product, jit_compile=False)
    model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    for _ in range(2):
        gradient = x.T.astype("float64") @ y / 4  # of the kernel; it is constant
        changes = gradients(kind, values, before, gradient)
        values = {k: v - rate * changes.get(k, 0.0) for k, v in values.items()}
    for name, value in values_of(layer, kind).items():
        np.testing.assert_allclose(value, values[name], rtol=1e-4, atol=1e-5)


def gradients(kind, values, matrix, gradient):
    """Return the gradients of what is trained from that of the matrix."""
    if kind == "nola":
        count = len(values["alpha"])
        a, b = (
            np.tensordot(values[w], values[m], 1) / np.sqrt(count)
            for w, m in (("alpha", "bases_a"), ("beta", "bases_b"))
        )
        return {
            "alpha": np.tensordot(values["bases_a"], gradient @ b.T) / np.sqrt(count),
            "beta": np.tensordot(values["bases_b"], a.T @ gradient) / np.sqrt(count),
        }
    found = {}
    if kind == "dora":
        changed = matrix + values["lora_a"] @ values["lora_b"]
        unit = changed / np.linalg.norm(changed, axis=0)
        found["magnitude"] = (gradient * unit).sum(axis=0)
        gradient = gradient * values["magnitude"] / np.linalg.norm(changed, axis=0)
    return {
        "lora_a": gradient @ values["lora_b"].T,
        "lora_b": values["lora_a"].T @ gradient,
        **found,
    }
