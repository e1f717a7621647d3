"""The house: which module may import which, and what each must say of itself."""

import ast
import importlib
import inspect
import sys
from pathlib import Path

import pytest

import keras_randlora as kr

pytestmark = pytest.mark.any_backend

PACKAGE = Path(kr.__file__).parent

# The house: what stands in a line imports from the lines above it only.
ROOMS = [
    "tools",
    "bases",
    "config",
    "update",
    "layers",
    "adapt",
    "analysis",
    "planning",
    "data",
    "files",
    "export",
    "peft",
    "callbacks",
    "methods",
    "cli",
    "__init__",
    "__main__",
]
# What may be imported with the package; all else, the backends above all, in functions.
REQUIRED = {"keras", "keras_randlora", "keras_randlora_command"}
REQUIRED |= {"ml_dtypes", "numpy", "safetensors"}
# The one place that touches what Keras and the backends keep to themselves.
INTERNALS = "tools.keras_internals."
LONGEST = 500  # lines of a module, tables of data left out
TABLES = {"peft.names"}


def module_name(path):
    """Return `adapt.targets`, or `adapt.__init__`, for a file of the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def room_of(module):
    """Return the room of a module: its folder, or itself beside the folders."""
    return module.split(".")[0]


def handed_on(room):
    """Return the names in `__all__` of a room's `__init__`."""
    module = importlib.import_module(f"keras_randlora.{room}")
    return set(module.__all__)


def run_time(tree):
    """Yield the nodes of a module, but for imports that only types need."""
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)):
            yield child
            yield from run_time(child)


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


def own_imports(module):
    """Yield the room and the rest of each name of the package that a module imports."""
    for name in imports_of(run_time(TREES[module])):
        package, _, rest = name.partition(".")
        if package == "keras_randlora":
            room, _, rest = rest.partition(".")
            yield room, rest


def private_attributes(tree):
    """Yield the private attributes of other objects than `self` and `cls`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = node.value.id if isinstance(node.value, ast.Name) else None
            if owner not in ("self", "cls") and not node.attr.startswith("__"):
                yield node.attr


def own_private_names(tree):
    """Return the private attributes and functions that a module defines itself."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                names.add(node.attr)
    return names


def test_every_module_has_its_room():
    assert {room_of(module) for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down(module):
    room = room_of(module)
    for other, rest in own_imports(module):
        assert other in ROOMS, f"{module} imports {other}.{rest}"
        assert ROOMS.index(other) <= ROOMS.index(room), f"{module} imports {other}"


@pytest.mark.parametrize("module", MODULES)
def test_a_room_takes_what_another_hands_on(module):
    for other, rest in own_imports(module):
        if other != room_of(module) and (PACKAGE / other).is_dir() and rest:
            assert rest in handed_on(other), f"{module} takes {other}.{rest}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_no_circle(module):
    """Within a room no two modules import each other, directly or not."""
    room = room_of(module)
    reached, waiting = set(), [module]
    while waiting:
        for other, rest in own_imports(waiting.pop()):
            inner = f"{other}.{rest.split('.')[0]}"
            if other == room and inner in MODULES and inner not in reached:
                reached.add(inner)
                waiting.append(inner)
    assert module not in reached


@pytest.mark.parametrize("module", MODULES)
def test_private_names_stay_in_their_module(module):
    names = [
        name
        for name in imports_of(ast.walk(TREES[module]))
        if name.startswith("keras_randlora.")
    ]
    assert [n for n in names if n.rpartition(".")[2].startswith("_")] == []


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith(INTERNALS)])
def test_what_keras_does_not_promise_is_touched_in_one_module(module):
    tree = TREES[module]
    foreign = set(private_attributes(tree)) - own_private_names(tree)
    assert foreign <= {
        "_asdict",
        "_fields",
        "_replace",
    }  # of named tuples, which are public
    sources = [n for n in imports_of(ast.walk(tree)) if n.startswith("keras.src")]
    assert sources == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_read_at_one_sitting(module):
    lines = len(MODULES[module].read_text("utf-8").splitlines())
    assert lines <= LONGEST or module in TABLES


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
    assert modules <= set(ROOMS)


def test_the_checks_see_what_they_forbid():
    tree = ast.parse(
        "import os, torch.nn\n"
        "from keras_randlora.adapt import merged\n"
        "class Public:\n"
        "    import jax\n"
        "    def method(self):\n"
        "        import tensorflow\n"
        "        self._own = layer._kernel\n"
    )
    everything = ["os", "torch.nn", "keras_randlora.adapt.merged", "jax", "tensorflow"]
    assert list(imports_of(ast.walk(tree))) == everything
    assert list(imports_of(run_at_import(tree))) == everything[:-1]
    assert [name for name, _ in public_definitions(tree)] == ["Public", "Public.method"]
    assert list(private_attributes(tree)) == ["_kernel"]
    assert own_private_names(tree) == {"Public", "method", "_own"}
