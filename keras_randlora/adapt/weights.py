"""Bare weights of layers, as sites beside the layers of a model."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping

import keras

from keras_randlora.adapt.hub_weights import axes_of
from keras_randlora.adapt.sites import Site, sites
from keras_randlora.layers import (
    HeldWeight,
    LinearWeight,
    adapted_weights,
    held_weights,
    layout_of,
)
from keras_randlora.tools import keras_internals


def all_sites(model: keras.layers.Layer, axes: Mapping[str, str]) -> list[Site]:
    """Return the layers of a model, and their bare weights.

    Nothing in the model changes: the layers that represent its plain weights are
    created here and not kept.

    Args:
        model: A model, or a layer that holds others.
        axes: The roles of the axes by name, path, address or pattern, in addition to
            the known ones of keras-hub.

    Raises:
        ValueError: A pattern matches no weight, or its axes do not fit.
    """
    found = sites(model, _weights_below(model))
    weights = [site for site in found if isinstance(site.layer, HeldWeight)]
    for pattern, roles in axes.items():
        matching = [site for site in weights if _is_meant(site, pattern)]
        if not matching:
            known = sorted({site.path for site in weights})
            raise ValueError(
                f"`weight_axes` names '{pattern}', but no layer of '{model.name}' "
                "holds a weight of two or more axes of that name. There are "
                f"{known[:12]}."
            )
        for site in matching:
            _describe(site, roles)
    return found


def _weights_below(model: keras.layers.Layer) -> dict[int, list[keras.layers.Layer]]:
    """Return the plain weights of each layer, by the layer's `id`."""
    found: dict[int, list[keras.layers.Layer]] = {}
    for layer in keras_internals.layers_below(model):
        if isinstance(layer, HeldWeight):
            continue
        adapted, known = adapted_weights(layer), axes_of(type(layer))
        for attribute in held_weights(layer):
            if attribute not in adapted:
                kind = LinearWeight if attribute in known else HeldWeight
                weight = kind(layer, attribute, known.get(attribute))
                found.setdefault(id(layer), []).append(weight)
    return found


def _is_meant(site: Site, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], site.path) is not None
    ends = site.path.endswith(f"/{pattern}")
    return ends or any(
        fnmatch.fnmatchcase(name, pattern)
        for name in (site.name, site.path, site.address)
    )


def _describe(site: Site, roles: str) -> None:
    """Set the roles of a weight's axes."""
    weight = site.layer
    if weight.axes == roles:
        return
    if not isinstance(weight, LinearWeight):
        weight.__class__ = LinearWeight
    weight.axes = roles
    try:
        layout_of(weight)
    except ValueError as error:
        raise ValueError(f"Weight '{site.path}' cannot be adapted. {error}") from error
