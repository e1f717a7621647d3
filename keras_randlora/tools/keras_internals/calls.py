"""Private state of Keras around calls, activation checkpointing and exports."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

# State that Keras sets up around a call and that is gone in the backward pass.
CALL_SURROUNDINGS = ("current_call_ctx", "autocast_scope")
_UNINITIALIZED = "uninitialized_variables"


def set_rematerialized(
    layer: keras.layers.Layer, call: Callable[..., Any] | None
) -> None:
    """Run a layer's call through `call(original, *args)`; `None` undoes it."""
    # Keras asks `rematerialized_call` of a layer with a mode.
    layer._remat_mode = None if call is None else "full"
    if call is None:
        vars(layer).pop("rematerialized_call", None)
    else:
        layer.rematerialized_call = call


def forget_losses(layer: keras.layers.Layer) -> None:
    """Drop the losses that the layers below a layer have added."""
    for child in layer._flatten_layers(include_self=False):
        child._loss_ids.clear()


def known_values() -> dict[int, Any]:
    """Return the values of variables in the surrounding stateless scope, by `id`."""
    from keras.src.backend.common.stateless_scope import get_stateless_scope

    scope = get_stateless_scope()
    return dict(scope.state_mapping) if scope else {}


def in_stateless_scope() -> bool:
    """Return whether a stateless scope of Keras is active."""
    from keras.src.backend.common.stateless_scope import in_stateless_scope

    return in_stateless_scope()


def surroundings() -> dict[str, Any]:
    """Return the state of Keras around the current call."""
    from keras.src.backend.common import global_state

    get = global_state.get_global_attribute
    return {name: get(name) for name in CALL_SURROUNDINGS}


@contextlib.contextmanager
def within(around: Mapping[str, Any]) -> Iterator[None]:
    """Restore the result of `surroundings` inside a block."""
    from keras.src.backend.common import global_state

    before = surroundings()
    for name, value in around.items():
        global_state.set_global_attribute(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            global_state.set_global_attribute(name, value)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Create variables that never get values.

    Keras would initialize them at the end of the next stateless scope, that of any
    symbolic call. This removes them from its list.
    """
    from keras.src.backend.common import global_state

    before = list(global_state.get_global_attribute(_UNINITIALIZED) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute(_UNINITIALIZED, before)


def input_signature(model: keras.Model) -> Sequence[Any]:
    """Return the arguments of a built model as nested `keras.InputSpec`s."""
    from keras.src.export.export_utils import get_input_signature

    return get_input_signature(model)


@contextlib.contextmanager
def quiet_tracer() -> Iterator[None]:
    """Keep torch's ONNX tracer from printing the whole graph if it fails."""
    import torch

    before = torch._C._jit_is_onnx_log_enabled()
    torch._C._jit_set_onnx_log_enabled(False)
    try:
        yield
    finally:
        torch._C._jit_set_onnx_log_enabled(before)
