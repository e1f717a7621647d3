"""What the package says of keras-hub's own weights, against keras-hub's source."""

import ast
import pathlib

import keras_hub
import pytest

from keras_randlora.adapt.hub_weights import MULTIPLIED, NOT_MULTIPLIED, ROUTERS

HUB_MODELS = pathlib.Path(keras_hub.src.models.__path__[0])
MODULES = [ast.parse(module.read_text()) for module in HUB_MODELS.rglob("*.py")]
CLASSES = {
    node.name: node
    for module in MODULES
    for node in ast.walk(module)
    if isinstance(node, ast.ClassDef)
}


def is_attribute(node, name):
    """Whether a node is `self.name`, perhaps cast to a dtype."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "ops.cast":
        node = node.args[0]
    return isinstance(node, ast.Attribute) and ast.unparse(node) == f"self.{name}"


def products(kind, attribute):
    """Yield the einsum equation, or "matmul", of each product with a weight."""
    for node in ast.walk(CLASSES[kind]):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        if function == "ops.einsum" and is_attribute(node.args[2], attribute):
            yield node.args[0].value
        if function == "ops.matmul" and is_attribute(node.args[1], attribute):
            yield "matmul"


def roles(equation):
    """Return the roles of the axes of the second operand of an equation.

    An axis that numbers the experts stands in the output and perhaps in the input, and
    comes first among the axes of the weight.
    """
    if equation == "matmul":
        return "in out"
    left, outputs = equation.split("->")
    inputs, kernel = left.split(",")
    contracted = ["in" if a in inputs and a not in outputs else "out" for a in kernel]
    return " ".join(["batch", *contracted[1:]] if len(kernel) == 3 else contracted)


@pytest.mark.parametrize(
    ("kind", "attribute"),
    [(kind, attribute) for kind, axes in MULTIPLIED.items() for attribute in axes],
)
def test_the_axes_are_those_of_the_products(kind, attribute):
    found = {roles(equation) for equation in products(kind, attribute)}
    assert found == {MULTIPLIED[kind][attribute]}


@pytest.mark.parametrize("kind", ROUTERS)
def test_the_routers_are_there(kind):
    named = {
        keyword.value.value
        for node in ast.walk(CLASSES[kind])
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Dense")
        for keyword in node.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
    }
    assert set(ROUTERS[kind]) <= named


@pytest.mark.parametrize(
    ("kind", "attribute"),
    [(k, name) for k, names in NOT_MULTIPLIED.items() for name in names],
)
def test_what_is_not_multiplied_has_no_product(kind, attribute):
    assert f"self.{attribute} = self.add_weight" in ast.unparse(CLASSES[kind])
    assert not list(products(kind, attribute))


def test_no_product_with_a_weight_is_missing():
    missing = {
        (kind, attribute)
        for kind, node in CLASSES.items()
        for attribute in added_weights(node)
        if list(products(kind, attribute)) and attribute not in MULTIPLIED.get(kind, {})
    }
    assert missing == set()


def added_weights(kind):
    """Yield the attributes that a class sets to weights of its own."""
    for node in ast.walk(kind):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            target, function = node.targets[0], ast.unparse(node.value.func)
            if function == "self.add_weight" and isinstance(target, ast.Attribute):
                yield target.attr
