"""What Keras has compiled of the models that hold a layer, which a change outdates.

A layer does not know the models that hold it. A task and its backbone are two of them:
either is adapted, and the other may have been called, fitted or asked to generate.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras

from keras_randlora.adapt.targets import sites

_FUNCTIONS = (
    "train_function",
    "test_function",
    "predict_function",
    "generate_function",
)


class CompiledFunction(NamedTuple):
    """A function that a model keeps under a name."""

    model: keras.Model
    name: str
    function: Any


def models_holding(
    model: keras.Model, layers: Sequence[keras.layers.Layer]
) -> list[keras.Model]:
    """Return the model, those in it, and all others in use that hold one of the layers.

    Args:
        model: The model that holds all of them.
        layers: Adapted layers, or layers to adapt.
    """
    wanted = {id(layer) for layer in layers}
    inside = [s.layer for s in sites(model) if isinstance(s.layer, keras.Model)]
    others = [
        other
        for other in _models_in_use()
        if wanted & {id(layer) for layer in other._flatten_layers()}
    ]
    return list({id(m): m for m in [model, *inside, *others]}.values())


def compiled_functions(models: Sequence[keras.Model]) -> list[CompiledFunction]:
    """Return the functions that the models have compiled."""
    return [
        CompiledFunction(model, name, function)
        for model in models
        for name in _FUNCTIONS
        if (function := getattr(model, name, None)) is not None
    ]


def put_back(functions: Sequence[CompiledFunction]) -> None:
    """Let models use functions again that were taken with `compiled_functions`."""
    for function in functions:
        setattr(function.model, function.name, function.function)


def forget_functions(
    models: Sequence[keras.Model], layers: Sequence[keras.layers.Layer]
) -> None:
    """Forget traces of the former layers, and list the variables anew on torch."""
    for function in compiled_functions(models):
        setattr(function.model, function.name, None)
    if keras.backend.backend() == "torch":
        changed = {id(layer) for layer in layers}
        outdated = {
            id(holder): holder
            for model in models
            for site in sites(model)
            if id(site.layer) in changed
            for holder in (site.layer, *site.ancestors)
        }
        for holder in outdated.values():
            holder._track_variables()


def require_new_compile(models: Sequence[keras.Model]) -> None:
    """Withdraw compilations whose optimizers hold state of other variables."""
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


def renew_optimizer(model: keras.Model) -> None:
    """Forget the optimizer's state; `evaluate` and `fit` go on."""
    if _holds_optimizer_state(model):
        optimizer = model.optimizer
        model.optimizer = type(optimizer).from_config(optimizer.get_config())


def _holds_optimizer_state(model: keras.Model) -> bool:
    optimizer = getattr(model, "optimizer", None)
    return bool(model.compiled and optimizer is not None and optimizer.built)


def _models_in_use() -> list[keras.Model]:
    """Return all models that the garbage collector knows, but for unfinished ones."""
    kinds = {keras.Model, *_subclasses(keras.Model)}
    return [o for o in gc.get_objects() if type(o) in kinds and hasattr(o, "_layers")]


def _subclasses(kind: type) -> Iterator[type]:
    subclass: type
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
