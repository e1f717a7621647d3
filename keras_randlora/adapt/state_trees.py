"""State trees between plain and adapted models (`set_state_tree`, Orbax folders).

Keras assigns the entries of a tree whose path it finds among the trainable or the
frozen variables, and silently ignores the others. An adapted kernel is frozen and a
plain one is not, so nothing would be restored between the two.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from keras_randlora.layers import RandLoRALayer, is_lambda

_WEIGHTS = ("trainable_variables", "non_trainable_variables")
_OPTIMIZER = "optimizer_variables"
_SEED = re.compile(r"seed_generator(?:_(\d+))?/seed_generator_state$")

Tree = Mapping[str, Any]


def restore_tree(
    model: keras.Model,
    adapted: list[RandLoRALayer],
    tree: Tree,
    restore: Callable[[keras.Model, Tree], None],
) -> None:
    """Restore the state of a plain or an adapted model.

    An adapted model loads the state of a plain one as its base, with an update of zero,
    as from a weights file.

    Args:
        model: The model.
        adapted: Its adapted layers.
        tree: The result of `get_state_tree`, or some of its entries.
        restore: Keras's own `set_state_tree`.

    Raises:
        ValueError: The model is plain and the state is not; or a whole state lacks a
            weight of the model or has another shape. The model is unchanged.
    """
    values = {path: v for name in _WEIGHTS for path, v in _flat(tree.get(name, {}))}
    values = _with_own_seeds(model, values)
    lambdas = [path for path in values if is_lambda(path)]
    if not adapted:
        if lambdas:
            raise ValueError(
                f"The state is that of a model adapted by RandLoRA ('{lambdas[0]}'), "
                f"but model '{model.name}' is plain: its kernels would lack the "
                "update. Call `enable_randlora` with the options of the saved model "
                "first, then load the state."
            )
        restore(model, tree)
        return
    is_whole = all(name in tree for name in _WEIGHTS)
    becomes_base = is_whole and not lambdas
    if is_whole:
        _require_all(model, adapted, values, becomes_base)
    _assign(model, adapted, values)
    others = {name: part for name, part in tree.items() if name not in _WEIGHTS}
    state = others.pop(_OPTIMIZER, None)
    if becomes_base:
        for layer in adapted:
            layer.randlora.reset()
    elif state is not None:  # of a base it belongs to other variables
        others[_OPTIMIZER] = _with_own_names(model, state)
    restore(model, others)


class _AnyNumber(dict[str, Any]):
    """Entries that are found under another number than Keras gave them here."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return the entry, else the first one of that name but for the number."""
        if name in self:
            return self[name]
        kind = _unnumbered(name)
        alike = (value for key, value in self.items() if _unnumbered(key) == kind)
        return next(alike, default)


@contextlib.contextmanager
def layouts_for_any_number(model: keras.Model) -> Iterator[None]:
    """Let Keras find where a model's variables lie, whatever number a folder has.

    Where it finds none, Orbax wants the devices that the folder was written from.
    """
    own = model.get_state_tree

    def get_state_tree(*arguments: Any, **options: Any) -> Tree:
        tree = own(*arguments, **options)
        return {name: _AnyNumber(part) for name, part in tree.items()}

    object.__setattr__(model, "get_state_tree", get_state_tree)
    try:
        yield
    finally:
        object.__delattr__(model, "get_state_tree")


def prepare_optimizer(model: keras.Model) -> None:
    """Create the state of a compiled model's optimizer, where it has none yet.

    Keras restores variables that are there only: a momentum that is not would begin
    anew in silence.
    """
    optimizer = getattr(model, "optimizer", None)
    if model.compiled and optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)


def _with_own_names(model: keras.Model, state: Tree) -> Tree:
    """Return an optimizer's state with the names of the model's.

    Keras numbers optimizers by the order in which they are made: `adam`, `adam_1`.
    """
    prepare_optimizer(model)
    optimizer = getattr(model, "optimizer", None)
    own = {v.path.partition("/")[0] for v in optimizer.variables} if optimizer else {}
    names = {_unnumbered(name): name for name in own}
    return {names.get(_unnumbered(name), name): part for name, part in state.items()}


def _with_own_seeds(model: keras.Model, values: dict[str, Any]) -> dict[str, Any]:
    """Return values by path, random generators with the numbers of the model's.

    Keras numbers them too, in the order in which a process makes them.
    """
    own = sorted((v.path for v in model.variables if _SEED.search(v.path)), key=_number)
    saved = sorted(filter(_SEED.search, values), key=_number)
    if len(own) != len(saved):
        return values
    names = dict(zip(saved, own, strict=True))
    return {names.get(path, path): value for path, value in values.items()}


def _number(path: str) -> tuple[str, int]:
    before, number, _ = _SEED.split(path)
    return before, int(number or 0)


def _unnumbered(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _flat(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the paths and values of a nested dictionary."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _require_all(
    model: keras.Model,
    adapted: list[RandLoRALayer],
    values: Mapping[str, Any],
    becomes_base: bool,
) -> None:
    """Check that a state has every weight that it needs."""
    spared = _bases(adapted)
    if becomes_base:
        spared |= {id(v) for layer in adapted for v in layer.randlora.trainable_weights}
    for weight in model.weights:
        if weight.path not in values and id(weight) not in spared:
            raise ValueError(
                f"The state lacks '{weight.path}' of model '{model.name}': it is that "
                "of another model, or Keras generated other names. Name the model and "
                "its layers, and adapt it as the saved one was."
            )


def _assign(
    model: keras.Model, adapted: list[RandLoRALayer], values: Mapping[str, Any]
) -> None:
    """Assign values by path, once all shapes fit; bases first, which may refuse."""
    bases = _bases(adapted)
    found = [v for v in model.variables if v.path in values]
    for variable in found:
        shape = tuple(getattr(values[variable.path], "shape", ()))
        if shape != tuple(variable.shape):
            raise ValueError(
                f"'{variable.path}' of model '{model.name}' has shape "
                f"{tuple(variable.shape)} here and {shape} in the state."
            )
    for variable in sorted(found, key=lambda variable: id(variable) not in bases):
        variable.assign(values[variable.path])


def _bases(adapted: list[RandLoRALayer]) -> set[int]:
    return {id(basis) for layer in adapted for basis in layer.bank.weights}
