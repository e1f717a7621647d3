"""RandLoRA in a tiny model of every keras-hub family: start, train, merge.

Also: no family and no `EinsumDense` equation of keras-hub is missing from the tables.
"""

import ast
import collections
import contextlib
import pathlib
import re

import families
import keras
import keras_hub
import numpy as np
import pytest
from einsum_equations import EQUATIONS, WRITTEN

import keras_randlora as kr
from keras_randlora.adapt import sites

HUB_MODELS = pathlib.Path(keras_hub.src.models.__path__[0])
KNOWN_EQUATIONS = {case.equation for case in EQUATIONS}

# The share of the multiplied weights that `all-linear` reaches, where that is not 99 %:
# the rest are convolutions that overlap, in groups, or by channels.
LEFT_OUT = {
    "qwen3_5": 0.977,
    "depth_anything": 0.517,
    "mit": 0.562,
    "segformer": 0.580,
    "d_fine": 0.833,
    "sam": 0.905,
    "sam3": 0.656,
    "stable_diffusion_3": 0.273,
    "moonshine": 0.612,
    "whisper": 0.889,
    "gemma3n": 0.712,
    "gemma4": 0.987,
}

# What Keras and keras-hub themselves warn of when these models are built and run.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}:UserWarning")
    for message in (
        "Layer '.*' .* was passed an input with a mask attached to it",
        r"`build\(\)` was called on layer",
        "The 'rwkv_ops' package is not installed",
        "Explicitly requested dtype int64",
        # torch, of the index that the rotary embedding of RoFormer writes as a list.
        "(?s).*Using a non-tuple sequence for multidimensional indexing",
    )
]


@pytest.mark.parametrize("name", families.names())
def test_start_training_and_merging(name):
    family = families.FAMILIES[name]
    model, inputs = family.build(), family.inputs()
    trainable = [weight.path for weight in model.trainable_weights]
    with frozen(model):
        base = outputs_of(model, inputs)

    report = kr.enable_randlora(model, rank=2, targets="all-linear")
    expected = LEFT_OUT.get(name, 0.99)
    assert report.coverage >= expected
    assert name not in LEFT_OUT or report.coverage < expected + 0.01
    assert_equations_are_listed(model)
    assert_same(base, outputs_of(model, inputs))

    adapters = adapters_of(model)
    assert list(adapters) == [layer.path for layer in report.layers]
    others = values_of_others(model, adapters)
    train(model, inputs, base)
    assert_unchanged(others, family)
    assert_trained(adapters)

    trained = outputs_of(model, inputs)
    assert relative_difference(base, trained) > 1e-3
    kr.merge_randlora(model)
    assert relative_difference(trained, outputs_of(model, inputs)) < 1e-4
    assert not [x for x in layers_of(model) if isinstance(x, kr.RandLoRALayer)]
    assert [weight.path for weight in model.trainable_weights] == trainable


def test_every_folder_of_keras_hub_stands_in_one_table():
    adapted = {family.folder for family in families.FAMILIES.values()}
    places = collections.Counter([*adapted, *families.WITHOUT_LINEAR])
    assert places == dict.fromkeys(families.folders(), 1)


@pytest.mark.parametrize("folder", families.WITHOUT_LINEAR)
def test_a_family_without_linear_layers_makes_none(folder):
    modules = [
        module
        for module in (HUB_MODELS / folder).glob("*.py")
        if not module.stem.endswith("image_classifier")
    ]
    making = [m.stem for m in modules if re.search(r"Dense\(", m.read_text())]
    assert making == (["mobilenetv5_blocks"] if folder == "mobilenetv5" else [])


def test_every_equation_written_in_keras_hub_is_listed():
    written = {
        equation
        for module in HUB_MODELS.parent.rglob("*.py")
        for equation in written_equations(module)
    }
    assert written == {case.equation for case in WRITTEN}


def layers_of(model):
    return model._flatten_layers(include_self=False)


def outputs_of(model, inputs):
    """Return every output as an array, in a fixed order."""
    outputs = keras.tree.flatten(model(inputs, training=False))
    return [np.array(keras.ops.convert_to_numpy(output)) for output in outputs]


@contextlib.contextmanager
def frozen(model):
    """Freeze every weight: torch multiplies by a frozen kernel in another order."""
    trainable = model.trainable_weights
    for weight in trainable:
        weight.trainable = False
    yield
    for weight in trainable:
        weight.trainable = True


def adapters_of(model):
    """Return `{address: adapter}` of the adapted layers, in the model's order."""
    return {
        site.address: site.layer.randlora
        for site in sites(model)
        if isinstance(site.layer, kr.RandLoRALayer)
    }


def values_of_others(model, adapters):
    """Return the weights other than λ and γ, each with its value."""
    factors = {id(w) for adapter in adapters.values() for w in adapter.weights}
    others = [weight for weight in model.weights if id(weight) not in factors]
    return [(weight, value_of(weight)) for weight in others]


def value_of(weight):
    return np.array(keras.ops.convert_to_numpy(weight))


def train(model, inputs, outputs, steps=2):
    """Fit random targets. γ changes from the second step on, when λ is not zero."""
    rng = np.random.default_rng(1)
    drawn = [rng.standard_normal(one.shape).astype("float32") for one in outputs]
    targets = keras.tree.pack_sequence_as(model.output, drawn)
    model.compile(
        keras.optimizers.Adam(1e-2),
        loss="mse",
        jit_compile=keras.backend.backend() == "jax",
    )
    for _ in range(steps):
        loss = model.train_on_batch(inputs, targets)
        assert np.all(np.isfinite(loss))


def assert_equations_are_listed(model):
    equations = {
        layer.equation
        for layer in layers_of(model)
        if isinstance(layer, keras.layers.EinsumDense)
    }
    assert equations <= KNOWN_EQUATIONS


def assert_same(expected, actual):
    assert len(expected) == len(actual)
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_unchanged(weights, family):
    changed = {w.path for w, value in weights if not np.array_equal(value_of(w), value)}
    assert {p for p in changed if not p.endswith(tuple(family.own_updates))} == set()


def assert_trained(adapters):
    """λ and γ of every layer have moved."""
    first = {path: np.float32(1 / a.shape.smaller) for path, a in adapters.items()}
    at_zero = {path for path, a in adapters.items() if not value_of(a.lambda_).any()}
    at_first = {
        path for path, a in adapters.items() if np.all(value_of(a.gamma) == first[path])
    }
    assert (at_zero, at_first) == (set(), set())


def relative_difference(expected, actual):
    """Return the largest difference of any output, relative to its own scale."""
    return max(
        np.max(np.abs(one - other)) / (np.max(np.abs(one)) + 1e-6)
        for one, other in zip(expected, actual, strict=True)
        if one.dtype.kind == "f" and one.size
    )


def written_equations(module):
    """Yield the equations that a module passes to an `EinsumDense` as a literal."""
    for node in ast.walk(ast.parse(module.read_text())):
        if not isinstance(node, ast.Call):
            continue
        if not ast.unparse(node.func).endswith("EinsumDense"):
            continue
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            if isinstance(argument, ast.Constant) and "->" in str(argument.value):
                yield argument.value
