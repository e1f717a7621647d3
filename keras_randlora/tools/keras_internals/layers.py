"""Private attributes of Keras layers and models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras


def kernel_variable(layer: keras.layers.Layer) -> keras.Variable:
    """Return the variable of a layer's kernel, packed if it is int4.

    Transposed convolutions have it as `kernel`, which adapted classes override.
    """
    own = vars(layer)
    return own["_kernel"] if "_kernel" in own else own["kernel"]


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return a layer's own variables, without those of its children."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def own_trainable_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return a layer's own variables that were created as trainable.

    They stay in this list when their own flag is set to `False`.
    """
    return list(layer._trainable_variables)


def own_flag(layer: keras.layers.Layer) -> bool:
    """Return a layer's own `trainable` flag, ignoring an overriding property."""
    return layer._trainable


def set_own_flag(layer: keras.layers.Layer, trainable: bool) -> None:
    """Set a layer's own `trainable` flag, not those of the layers below."""
    layer._trainable = trainable


def children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the direct children of a layer."""
    return list(layer._layers)


def sort_children(
    layer: keras.layers.Layer, place: Callable[[keras.layers.Layer], int]
) -> None:
    """Sort the direct children of a layer; the sort is stable."""
    layer._layers.sort(key=place)


def layers_below(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return a model and every layer below it."""
    return list(model._flatten_layers())


def is_complete(model: Any) -> bool:
    """Return whether the constructor of a model has created its layers."""
    return hasattr(model, "_layers")


def writes_its_layers(model: keras.Model) -> bool:
    """Return whether a model's configuration includes its layers' configurations."""
    from keras.src.models.functional import Functional

    writers = (Functional.get_config, keras.Sequential.get_config)
    return type(model).get_config in writers


def has_called_its_layers(model: keras.Model) -> bool:
    """Return whether making a model called every layer it uses, as a functional one."""
    from keras.src.models.functional import Functional

    return isinstance(model, Functional)


@contextlib.contextmanager
def unlocked(layer: keras.layers.Layer) -> Iterator[None]:
    """Allow adding state to a built layer inside a block."""
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


def untrack(layer: keras.layers.Layer, child: Any) -> None:
    """Remove a child or a variable from a layer; call it within `unlocked`."""
    layer._tracker.untrack(child)


def list_variables_anew(layer: keras.layers.Layer) -> None:
    """Update a layer's `nn.Module` parameters on torch; do nothing elsewhere."""
    if keras.backend.backend() == "torch":
        layer._track_variables()


def set_parent_path(layer: keras.layers.Layer, path: str) -> None:
    """Let the path of an unbuilt layer begin with `path`."""
    layer._parent_path = path


def add_kernel(layer: keras.layers.Layer, shape: tuple[int, ...]) -> None:
    """Give a layer a kernel of floating-point zeros, first among its variables."""
    with layer._open_name_scope():
        layer._kernel = layer.add_weight(
            name="kernel",
            shape=shape,
            initializer="zeros",
            regularizer=layer.kernel_regularizer,
        )
    layer._trainable_variables.sort(key=lambda variable: variable is not layer._kernel)


def heads_of(layer: keras.layers.Layer) -> int | None:
    """Return the number of query heads of an attention layer, `None` if unknown."""
    for name in ("num_query_heads", "num_heads", "_num_heads"):
        if isinstance(found := getattr(layer, name, None), int):
            return found
    return None


def asks_for_fused_attention(layer: keras.layers.Layer) -> Callable[[], bool] | None:
    """Return the function that tells whether attention is fused, or `None`."""
    return getattr(layer, "_use_fused_attention_op", None)
