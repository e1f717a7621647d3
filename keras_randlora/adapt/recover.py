"""What a model was adapted with, read off its layers.

Keras builds the layers adapted, without `enable_randlora`, where it loads the `.keras`
file of an adapted model or clones one; a new model may be made of them as well.
"""

from __future__ import annotations

import dataclasses

import keras

from keras_randlora.adapt.targets import Selection, Site, require_built, sites
from keras_randlora.config import RandLoRAConfig
from keras_randlora.layers import RandLoRALayer, own_weights


def recover(model: keras.Model) -> tuple[RandLoRAConfig, Selection] | None:
    """Return the options and the layers of a model that was built adapted.

    All that is trainable beside λ and γ counts as also trained.

    Returns:
        `None` if no layer is adapted, or one is by a call on another model.

    Raises:
        ValueError: The layers are not built, or their options or bases differ, so that
            no single adaptation describes them.
    """
    everything = sites(model)
    adapted = [site for site in everything if isinstance(site.layer, RandLoRALayer)]
    if not adapted or any(_belongs_to_another(site.layer) for site in adapted):
        return None
    _require_alike(model, adapted)
    inside = {id(site.layer) for site in adapted}
    also_trained = [
        site
        for site in everything
        if not inside & {id(site.layer), *map(id, site.ancestors)}
        and any(variable.trainable for variable in own_weights(site.layer))
    ]
    options = dataclasses.asdict(adapted[0].layer.options)
    config = RandLoRAConfig(
        **{
            **options,
            "train_bias": "adapted" if options["train_bias"] else "none",
            "targets": [site.path for site in adapted],
            "also_train": [site.path for site in also_trained],
        }
    )
    return config, Selection(adapted, also_trained)


def _belongs_to_another(layer: RandLoRALayer) -> bool:
    """Return whether `enable_randlora` adapted the layer in a model that is in use."""
    return layer.built and layer.randlora.enabled_on() is not None


def _require_alike(model: keras.Model, adapted: list[Site]) -> None:
    """Check that all layers are built, with the same options and bases."""
    require_built(model, adapted)
    first = adapted[0]
    options = dataclasses.asdict(first.layer.options)
    for site in adapted:
        for name, theirs in dataclasses.asdict(site.layer.options).items():
            if theirs != options[name]:
                raise ValueError(
                    f"The layers of model '{model.name}' were built with different "
                    f"options: '{first.path}' with {name}={options[name]!r}, "
                    f"'{site.path}' with {name}={theirs!r}. What concerns the whole "
                    "model needs the same options in all of them."
                )
    if not _share_bases([site.layer for site in adapted]):
        raise ValueError(
            f"The layers of model '{model.name}' were built with banks of bases that "
            "the layers' own options would not draw for the model. Build them with one "
            "bank, or with a `basis` whose sparsity does not depend on the sizes."
        )


def _share_bases(layers: list[RandLoRALayer]) -> bool:
    """Return whether one bank, made of the layers' options, would serve all."""
    banks = [layer.randlora.bank for layer in layers]
    if any(bank.given for bank in banks):
        return all(bank is banks[0] for bank in banks)
    spec = layers[0].options.basis_spec([layer.randlora.shape for layer in layers])
    return all(bank.spec == spec for bank in banks)
