"""Invalidate the compiled functions of models that hold a changed layer.

A layer does not know the models that hold it, such as a task and its backbone: one of
them is adapted, and the other may have compiled `predict`, `fit` or `generate`.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_randlora.adapt.holders import update_holders
from keras_randlora.adapt.sites import sites
from keras_randlora.layers import holder_of
from keras_randlora.tools import has_frozen_objects, keras_internals

_FUNCTIONS = (
    "train_function",
    "test_function",
    "predict_function",
    "generate_function",
)
# Models that have compiled a function since this package was imported.
_COMPILED: weakref.WeakSet[keras.Model] = weakref.WeakSet()


class CompiledFunction(NamedTuple):
    """A compiled function of a model, and its attribute."""

    model: keras.Model
    name: str
    function: Any


def note_compiled(model: keras.Model) -> None:
    """Record that a model compiles a function."""
    _COMPILED.add(model)


def models_holding(
    model: keras.Model, layers: Sequence[keras.layers.Layer]
) -> list[keras.Model]:
    """Return the model, those in it, and all others in use that hold one of the layers.

    Args:
        model: The model that holds all of them.
        layers: Adapted layers, or layers to adapt.
    """
    inside = [s.layer for s in sites(model) if isinstance(s.layer, keras.Model)]
    others = _holding([*_COMPILED, *_models_in_use(layers)], layers)
    return list({id(m): m for m in [model, *inside, *others]}.values())


def compiled_functions(models: Sequence[keras.Model]) -> list[CompiledFunction]:
    """Return the compiled functions of the models."""
    return [
        CompiledFunction(model, name, function)
        for model in models
        for name in _FUNCTIONS
        if (function := getattr(model, name, None)) is not None
    ]


def put_back(functions: Sequence[CompiledFunction]) -> None:
    """Restore the result of `compiled_functions`."""
    for function in functions:
        setattr(function.model, function.name, function.function)


def follow_changes(
    models: Sequence[keras.Model], layers: Sequence[keras.layers.Layer]
) -> None:
    """Update models after a change of layers that they hold.

    This drops traces of the former layers, updates the list of variables on torch, and
    gives the layers in between the class that they need in files.
    """
    update_holders(models)
    for function in compiled_functions(models):
        setattr(function.model, function.name, None)
    if keras.backend.backend() == "torch":
        changed = {id(one) for layer in layers for one in (layer, holder_of(layer))}
        outdated = {
            id(holder): holder
            for model in models
            for site in sites(model)
            if id(site.layer) in changed
            for holder in (site.layer, *site.ancestors)
        }
        for holder in outdated.values():
            keras_internals.list_variables_anew(holder)


def require_new_compile(models: Sequence[keras.Model]) -> None:
    """Require `compile` again where the optimizer holds state of other variables."""
    for model in models:
        if not _holds_optimizer_state(model):
            continue
        model.compiled = False
        warnings.warn(
            f"Model '{model.name}' was compiled with an optimizer that holds state for "
            "the variables it trained before. Call `model.compile(...)` again before "
            "`fit`.",
            stacklevel=4,
        )


def renew_optimizers(models: Sequence[keras.Model]) -> None:
    """Reset the models' optimizers; the models stay compiled."""
    for model in models:
        if _holds_optimizer_state(model):
            keras_internals.forget_state(model.optimizer)


def follow_values(model: keras.Model, variables: Sequence[keras.Variable]) -> None:
    """Let optimizers continue from assigned values of variables.

    Averages of former values are set to the new ones, or they would pull the variables
    back. Accumulated gradients at the former values are dropped. Momenta fade in a few
    steps and stay, as does the step count.

    Args:
        model: The model that holds the variables.
        variables: The variables.
    """
    given = {id(variable) for variable in variables}
    for holder in {id(m): m for m in (model, *_COMPILED)}.values():
        if not _holds_optimizer_state(holder):
            continue
        for variable, average in keras_internals.averages_of(holder.optimizer):
            if id(variable) in given:
                average.assign(ops.copy(variable))
        for variable, total in keras_internals.accumulators_of(holder.optimizer):
            if id(variable) in given:
                total.assign(np.zeros(total.shape, total.dtype))


def shared_averages(
    model: keras.Model,
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Return variables and averages that share an array on JAX.

    Keras 3.15 makes them share at the end of `fit`. In the next `fit` JAX refuses to
    donate the same array twice, after it has deleted all others.
    """
    if keras.backend.backend() != "jax" or not _holds_optimizer_state(model):
        return []
    pairs = keras_internals.averages_of(model.optimizer)
    return [
        (variable, mean) for variable, mean in pairs if mean.value is variable.value
    ]


def _holds_optimizer_state(model: keras.Model) -> bool:
    optimizer = getattr(model, "optimizer", None)
    return bool(model.compiled and optimizer is not None and optimizer.built)


def _holding(
    models: Sequence[keras.Model], layers: Sequence[keras.layers.Layer]
) -> list[keras.Model]:
    """Return the models that hold one of the layers."""
    wanted = {id(holder_of(layer)) for layer in layers}
    return [
        model
        for model in {id(m): m for m in models}.values()
        if wanted & {id(layer) for layer in keras_internals.layers_below(model)}
    ]


def _models_in_use(layers: Sequence[keras.layers.Layer]) -> list[keras.Model]:
    """Return the complete models that the garbage collector knows.

    It does not know frozen objects. A model is younger than the layers it holds: if
    the collector knows these, it knows all models that hold them.
    """
    kinds = {keras.Model, *_subclasses(keras.Model)}
    known = gc.get_objects()  # half a million: what follows loops in C
    models = compress(known, map(kinds.__contains__, map(type, known)))
    found = list(filter(keras_internals.is_complete, models))
    holders = {id(holder_of(layer)) for layer in layers}
    if holders.difference(map(id, known)) and has_frozen_objects():
        warnings.warn(
            "`gc.freeze()` hides the layers from the search for other models that hold "
            "them. Such a model keeps the functions that it compiled for `generate` or "
            "before `keras_randlora` was imported: call its `compile` again.",
            stacklevel=5,
        )
    return found


def _subclasses(kind: type) -> Iterator[type]:
    subclass: type
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
