"""Reconstruct the options of a model that was built of adapted layers.

Keras builds adapted layers without `enable_randlora` when it loads the `.keras` file of
an adapted model or clones one. A new model may also be made of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from keras_randlora.adapt.sites import Site
from keras_randlora.adapt.targets import Selection, require_built
from keras_randlora.config import RandLoRAConfig
from keras_randlora.layers import LinearWeight, RandLoRALayer
from keras_randlora.tools import keras_internals
from keras_randlora.update import pair_size


def recover(
    model: keras.Model, everything: list[Site], adapted: list[Site]
) -> tuple[RandLoRAConfig, Selection]:
    """Return the options and the layers of a model that was built adapted.

    Everything trainable except λ and γ counts as `also_train`.

    Args:
        model: The model.
        everything: Its layers.
        adapted: The adapted layers, at least one.

    Raises:
        ValueError: The layers are not built, or their options or bases differ, so that
            no single adaptation describes them.
    """
    _require_alike(model, adapted)
    inside = {id(site.layer) for site in adapted}
    also_trained = [
        site
        for site in everything
        if not inside & {id(site.layer), *map(id, site.ancestors)}
        and any(v.trainable for v in keras_internals.own_variables(site.layer))
    ]
    layer = adapted[0].layer
    config = RandLoRAConfig(
        **dataclasses.asdict(layer.options),
        train_bias="adapted" if layer.train_bias else "none",
        targets=tuple(site.address for site in adapted),
        also_train=tuple(site.address for site in also_trained),
        weight_axes=tuple(
            (site.address, site.layer.axes)
            for site in adapted
            if isinstance(site.layer, LinearWeight) and site.layer.axes
        ),
    )
    return config, Selection(adapted, also_trained)


def _options(layer: RandLoRALayer) -> dict[str, Any]:
    return {**dataclasses.asdict(layer.options), "train_bias": layer.train_bias}


def _require_alike(model: keras.Model, adapted: list[Site]) -> None:
    """Check that all layers are built, with the same options and bases."""
    require_built(model, adapted)
    first = adapted[0]
    options = _options(first.layer)
    for site in adapted:
        for name, theirs in _options(site.layer).items():
            if theirs != options[name]:
                raise ValueError(
                    f"The layers of model '{model.name}' were built with different "
                    f"options: '{first.path}' with {name}={options[name]!r}, "
                    f"'{site.path}' with {name}={theirs!r}. Merging and saving the "
                    "whole model need the same options in all layers."
                )
    if not _bases_agree([site.layer for site in adapted]):
        raise ValueError(
            f"The layers of model '{model.name}' were built with different banks of "
            "bases, which one bank for the model would not reproduce. Build them with "
            "one bank, or with a `basis` whose sparsity does not depend on the sizes."
        )


def _bases_agree(layers: list[RandLoRALayer]) -> bool:
    """Return whether one bank, built from the layers' options, would fit all."""
    banks = [layer.randlora.bank for layer in layers]
    if any(bank.given for bank in banks):
        return all(bank is banks[0] for bank in banks)
    size = pair_size([layer.randlora.shape for layer in layers])
    spec = layers[0].options.basis_spec(size)
    return all(bank.spec == spec for bank in banks)
