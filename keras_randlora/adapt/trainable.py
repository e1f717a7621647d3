"""Trainable flags: freezing the base, and variables trained beside λ and γ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import keras

from keras_randlora.adapt.sites import sites
from keras_randlora.adapt.targets import Selection
from keras_randlora.config import RandLoRAConfig
from keras_randlora.layers import RandLoRAAdapter, layout_of, named_weights
from keras_randlora.tools import keras_internals
from keras_randlora.update import UpdateShape


class TrainableFlag(NamedTuple):
    """Whether a layer and its own variables are trainable.

    Attributes:
        layer: The layer.
        trainable: Its own flag.
        variables: Its own trainable variables, and their flags.
    """

    layer: keras.layers.Layer
    trainable: bool
    variables: list[tuple[keras.Variable, bool]]

    @classmethod
    def of(cls, layer: keras.layers.Layer) -> TrainableFlag:
        """Return the current flags of a layer."""
        own = keras_internals.own_trainable_variables(layer)
        flags = [(variable, variable.trainable) for variable in own]
        return cls(layer, keras_internals.own_flag(layer), flags)

    def restore(self) -> None:
        """Restore the flags."""
        keras_internals.set_own_flag(self.layer, self.trainable)
        for variable, trainable in self.variables:
            variable.trainable = trainable


def trainable_flags(model: keras.Model) -> list[TrainableFlag]:
    """Return the flags of a model and of every layer in it."""
    return [TrainableFlag.of(model), *(TrainableFlag.of(s.layer) for s in sites(model))]


def restore_flags(flags: Sequence[TrainableFlag]) -> None:
    """Restore the flags of layers and variables."""
    for flag in flags:
        flag.restore()


def train_only(model: keras.Model, extra: dict[str, keras.Variable]) -> None:
    """Freeze everything but λ, γ and the extra variables.

    A layer with nothing to train is frozen itself, so that batch normalization does not
    update its statistics.
    """
    trained = {id(variable) for variable in extra.values()}
    layers = [model, *(site.layer for site in sites(model))]
    for layer in layers:
        adapter = isinstance(layer, RandLoRAAdapter)
        for variable in keras_internals.own_trainable_variables(layer):
            variable.trainable = adapter or id(variable) in trained
    for layer in layers:
        variables = layer.variables
        if variables:
            flag = any(variable.trainable for variable in variables)
            keras_internals.set_own_flag(layer, flag)


def update_shapes(selection: Selection, config: RandLoRAConfig) -> list[UpdateShape]:
    """Return the sizes of the updates of the selected layers."""
    return [
        UpdateShape.of_layout(layout_of(layer), config) for layer in selection.layers
    ]


def adapter_shapes(
    model: keras.Model, config: RandLoRAConfig, selection: Selection
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the entries that `get_adapter` would have.

    Args:
        model: A plain model.
        config: The options.
        selection: The layers to adapt and train.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    updates = update_shapes(selection, config)
    for site, shape in zip(selection.adapted, updates, strict=True):
        shapes[f"{site.address}/lambda"] = shape.lambda_shape
        shapes[f"{site.address}/gamma"] = shape.gamma_shape
    extra = extra_variables(model, selection, config)
    return {**shapes, **{path: tuple(v.shape) for path, v in extra.items()}}


def extra_variables(
    model: keras.Model, selection: Selection, config: RandLoRAConfig
) -> dict[str, keras.Variable]:
    """Return the weights trained beside λ and γ, by address.

    Raises:
        ValueError: One of them is quantized.
    """
    adapted = {id(site.layer) for site in selection.adapted}
    trained = {id(site.layer) for site in selection.also_trained}
    extra = {}
    for site in sites(model):
        whole = bool(trained & {id(site.layer), *map(id, site.ancestors)})
        bias = config.train_bias == "all" or (
            config.train_bias == "adapted" and id(site.layer) in adapted
        )
        if whole and _holds_integers(site.layer):
            raise ValueError(
                f"Layer '{site.path}' is in `also_train` and quantized as "
                f"'{site.layer.quantization_mode}': a quantized kernel cannot be fully "
                "trained. Quantize the backbone only (`model.backbone.quantize(...)`), "
                "or leave the layer out."
            )
        for name, variable in named_weights(site.layer).items():
            if whole or (bias and name == "bias"):
                extra[f"{site.address}/{name}"] = variable
    return extra


def _holds_integers(layer: keras.layers.Layer) -> bool:
    """Whether a layer has quantized weights."""
    dtypes = [weight.dtype for weight in named_weights(layer).values()]
    return layer.quantization_mode is not None and not all(
        map(keras.backend.is_float_dtype, dtypes)
    )
