"""Layers that build their own children (`MultiHeadAttention`) in `.keras` files.

Keras saves each layer of a functional or sequential model with the arguments of its
constructor. A layer that holds adapted ones would be loaded with plain children and
train what was frozen. While it holds some, it has a class that saves how they are
adapted and which variables are trained, and that adapts the children again when they
are built. Keras's own deserialization then restores weights and optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_randlora.adapt.sites import Site, sites
from keras_randlora.adapt.trainable import train_only
from keras_randlora.adapt.weights import all_sites
from keras_randlora.layers import (
    RandLoRALayer,
    adapt_layer,
    adaptation_of,
    named_weights,
    own_class_of,
)
from keras_randlora.tools import keras_internals

_NAME = "RandLoRAHolder"
_CLASSES: dict[type, type] = {}


def update_holders(models: Sequence[keras.Model]) -> None:
    """Set the class of the layers that hold adapted ones, as files need it.

    Layers that no longer hold any get their own class back.
    """
    for model in models:
        for site in sites(model):
            layer = site.layer
            outermost = all(isinstance(a, keras.Model) for a in site.ancestors)
            if isinstance(layer, (keras.Model, RandLoRALayer)) or not outermost:
                continue
            holds = _is_written(site) and any(_adapted(layer))
            tells = _tells(layer)
            if holds and not tells:
                layer.__class__ = _holder_class(type(layer))
            elif not holds and tells:
                layer.__class__ = layer.own_class


def _tells(layer: keras.layers.Layer) -> bool:
    """Return whether a layer has the class that saves its adapted children."""
    return "waiting" in vars(type(layer))


def _is_written(site: Site) -> bool:
    """Return whether the models around a layer save its own configuration."""
    return all(keras_internals.writes_its_layers(model) for model in site.ancestors)


def _adapted(holder: keras.layers.Layer) -> list[Site]:
    return [s for s in sites(holder) if isinstance(s.layer, RandLoRALayer)]


def _holder_class(plain: type[keras.layers.Layer]) -> type[keras.layers.Layer]:
    """Return the class of layers of class `plain` that hold adapted ones."""
    if plain not in _CLASSES:
        methods: dict[str, Any] = {
            "__module__": plain.__module__,
            "__doc__": plain.__doc__,
            "own_class": plain,
            "waiting": None,
            "get_config": _get_config,
            "from_config": classmethod(_from_config),
            "build_from_config": _build_from_config,
            "__call__": _call,
        }
        made: Any = type(plain.__name__, (plain,), methods)
        for kind in (made, AdaptedHolder):  # the second is what another process finds
            keras.saving.register_keras_serializable("keras_randlora", _NAME)(kind)
        _CLASSES[plain] = made
    return _CLASSES[plain]


def _get_config(holder: Any) -> dict[str, Any]:
    """Return the constructor's arguments and the adaptation of the children."""
    plain: Any = own_class_of(holder)
    return {
        "plain": {
            "module": plain.__module__,
            "class_name": plain.__name__,
            "registered_name": keras.saving.get_registered_name(plain),
            "config": plain.get_config(holder),
        },
        "adapted": {
            site.address: site.layer.adaptation_config() for site in _adapted(holder)
        },
        "trained": [
            name for name, variable in _variables(holder).items() if variable.trainable
        ],
    }


def _from_config(cls: Any, config: dict[str, Any]) -> keras.layers.Layer:
    """Rebuild the layer; its children are adapted when they are built."""
    holder = keras.saving.deserialize_keras_object(config["plain"])
    holder.__class__ = _holder_class(type(holder))
    holder.waiting = config
    return holder


def _build_from_config(holder: Any, config: dict[str, Any]) -> None:
    """Build the children, and adapt them."""
    holder.own_class.build_from_config(holder, config)
    _adapt_children(holder)


def _call(holder: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the layer; in some layers the first call builds the children."""
    outputs = holder.own_class.__call__(holder, *args, **kwargs)
    _adapt_children(holder)
    return outputs


def _adapt_children(holder: Any) -> None:
    """Adapt the children by the configuration, once they are all built."""
    if holder.waiting is None:
        return
    adapted, trained = holder.waiting["adapted"], set(holder.waiting["trained"])
    axes = {
        name: config["axes"] for name, config in adapted.items() if "axes" in config
    }
    children = {site.address: site.layer for site in all_sites(holder, axes)}
    if not all(name in children and children[name].built for name in adapted):
        return
    holder.waiting = None
    for name, config in adapted.items():
        if not isinstance(children[name], RandLoRALayer):
            adapt_layer(children[name], adaptation_of(config)[0])
    if not _tells(holder):  # it has got the class of a layer that holds weights
        holder.__class__ = _holder_class(type(holder))
    extra = {n: v for n, v in _variables(holder).items() if n in trained}
    train_only(holder, extra)
    for site in sites(holder):
        keras_internals.list_variables_anew(site.layer)
    keras_internals.list_variables_anew(holder)


def _variables(holder: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Return the variables of a holder, by stable names."""
    found = dict(named_weights(holder))
    for site in sites(holder):
        for name, variable in named_weights(site.layer).items():
            found[f"{site.address}/{name}"] = variable
    return found


@keras.saving.register_keras_serializable("keras_randlora", _NAME)
class AdaptedHolder(keras.layers.Layer):
    """Placeholder in files for the class of a layer that holds adapted ones."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> keras.layers.Layer:
        """Rebuild the layer; its children are adapted when they are built."""
        return _from_config(cls, config)
