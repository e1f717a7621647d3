"""The house: which module may import which, and what each must say of itself."""

import ast
import inspect
import sys
from pathlib import Path

import pytest

import keras_randlora as kr

PACKAGE = Path(kr.__file__).parent

# A module imports from the lines above its own only. A new one finds its place here.
LEVELS = [
    {"markup", "progress"},
    {"abstract", "arrays", "atomic", "bases", "gradient", "hub_repairs"}
    | {"loss_plane", "saved_model", "sizes", "straight_through"},
    {"config", "layouts", "peft_folder", "plots", "quantized", "sparse"},
    {"operators"},
    {"update"},
    {"bank"},
    {"product"},
    {"layers"},
    {"targets"},
    {"activations", "distribution", "footprint", "peft_names", "rematerialize"}
    | {"compiled", "diagnostics", "recover", "report", "similarity", "spectra"},
    {"adapt", "analysis"},
    {"budget", "optimizer", "planner", "weights"},
    {"files"},
    {"callbacks", "combine", "export", "peft"},
    {"methods"},
    {"cli"},
    {"__init__", "__main__"},
]
# What may be imported with the package; all else, the backends above all, in functions.
REQUIRED = {"keras", "keras_randlora", "ml_dtypes", "numpy", "safetensors"}

MODULES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def level_of(module):
    """Return the number of the module's line."""
    return next(i for i, names in enumerate(LEVELS) if module in names)


def imports_of(nodes):
    """Yield the full names that import statements among the nodes bring in."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def run_at_import(node):
    """Yield the nodes of a module, but for what stands in functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from run_at_import(child)


def public_definitions(node, prefix=""):
    """Yield the dotted name and node of the public classes, functions and methods."""
    for child in node.body:
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if not isinstance(child, kinds) or child.name.startswith("_"):
            continue
        if "setter" not in map(last_name, child.decorator_list):
            yield prefix + child.name, child
        if isinstance(child, ast.ClassDef):
            yield from public_definitions(child, f"{prefix}{child.name}.")


def last_name(decorator):
    """Return "setter" for `@trainable.setter`, whose getter has the docstring."""
    return getattr(decorator, "attr", None)


def test_every_module_has_its_place():
    placed = [module for names in LEVELS for module in names]
    assert sorted(placed) == sorted(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    for name in imports_of(ast.walk(TREES[module])):
        package, _, rest = name.partition(".")
        if package == "keras_randlora":
            other = rest.split(".")[0]
            assert other in MODULES, f"{module} imports {name}"
            assert level_of(other) < level_of(module), f"{module} imports {other}"


@pytest.mark.parametrize("module", MODULES)
def test_private_names_stay_in_their_module(module):
    names = [
        name
        for name in imports_of(ast.walk(TREES[module]))
        if name.startswith("keras_randlora.")
    ]
    assert [n for n in names if n.rpartition(".")[2].startswith("_")] == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_optional_is_needed_to_import(module):
    packages = {
        name.partition(".")[0] for name in imports_of(run_at_import(TREES[module]))
    }
    assert packages - set(sys.stdlib_module_names) <= REQUIRED


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_in_one_line_what_it_is_for(module):
    first, *rest = ast.get_docstring(TREES[module]).splitlines()
    assert first.endswith(".")
    assert rest[:1] in ([], [""])


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_is_described(module):
    silent = [
        name
        for name, node in public_definitions(TREES[module])
        if not ast.get_docstring(node)
    ]
    assert silent == []


def test_the_public_names():
    public = {
        name
        for name, value in vars(kr).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    modules = {name for name in kr.__all__ if inspect.ismodule(vars(kr)[name])}
    assert kr.__all__ == sorted(kr.__all__)
    assert set(kr.__all__) - modules == public
    assert modules <= set(MODULES)


def test_the_checks_see_what_they_forbid():
    tree = ast.parse(
        "import os, torch.nn\n"
        "from keras_randlora.adapt.verbs import merged\n"
        "class Public:\n"
        "    import jax\n"
        "    def method(self):\n"
        "        import tensorflow\n"
    )
    everything = ["os", "torch.nn", "keras_randlora.adapt.merged", "jax", "tensorflow"]
    assert list(imports_of(ast.walk(tree))) == everything
    assert list(imports_of(run_at_import(tree))) == everything[:-1]
    assert [name for name, _ in public_definitions(tree)] == ["Public", "Public.method"]
