"""Adapt a model, and remove the adaptation."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from typing import Any

import keras

from keras_randlora.adapt.compiled import (
    follow_changes,
    models_holding,
    renew_optimizers,
    require_new_compile,
)
from keras_randlora.adapt.diagnostics import (
    warn_of_dropout,
    warn_of_shared_kernels,
)
from keras_randlora.adapt.distribution import require_same_distribution
from keras_randlora.adapt.guards import guard_tasks
from keras_randlora.adapt.report import Report, summary
from keras_randlora.adapt.sites import sites
from keras_randlora.adapt.state import (
    AdaptedState,
    Bases,
    adapted_state,
    forget,
    remember,
    require_plain,
)
from keras_randlora.adapt.targets import Selection, select
from keras_randlora.adapt.trainable import (
    adapter_shapes,
    extra_variables,
    train_only,
    trainable_flags,
    update_shapes,
)
from keras_randlora.config import GIVEN, RandLoRAConfig
from keras_randlora.layers import Adaptation, RandLoRALayer, adapt_layer, float_policy
from keras_randlora.tools import shown
from keras_randlora.update import BasisBank, GivenBasisBank, bank_for


def enable_randlora(
    model: keras.Model,
    rank: int | RandLoRAConfig | None = None,
    targets: Any = None,
    **options: Any,
) -> Report:
    """Freeze a model and add a trainable RandLoRA update to its linear layers.

    The model is adapted in place, and its outputs stay exactly the same until it is
    trained. Everything is validated before the first layer changes.

    Args:
        model: A built model: functional, sequential, subclassed or keras-hub.
        rank: Rank of each basis, 32 by default. A larger rank means *fewer* trainable
            parameters. Or a `RandLoRAConfig`, alone: it holds all options.
        targets: Layer names, paths, globs, `"re:…"` or `"attention"`, `"mlp"`,
            `"all-linear"`. Default: the model's own `default_lora_layer_names()`,
            else its attention layers.
        **options: The other attributes of `RandLoRAConfig`, or `config`:

            | option | default | meaning |
            |---|---|---|
            | `alpha` | `20 * rank` | the update is scaled by `alpha / rank` |
            | `basis` | `"uniform"` | kind of the bases; `"kronecker"` is the cheapest |
            | `sparsity` | | with `basis="ternary"`: each sign has `1 / sparsity` |
            | `seed` | 0 | integer in `[0, 2**32)` that determines the bases |
            | `num_bases` | full rank | upper bound on the bases of a layer |
            | `dropout` | 0.0 | rate of dropout on the adapter's input |
            | `exclude` | | patterns subtracted from `targets` |
            | `layers` | all | indices of the blocks to adapt |
            | `train_bias` | `"none"` | or `"adapted"`, `"all"` |
            | `also_train` | | patterns of layers that are fully trained and saved |
            | `basis_storage` | `"stored"` | or `"regenerated"` |
            | `compute` | `"auto"` | or `"materialized"`, `"factored"` |

    Returns:
        A `Report` of the adapted layers and the counts.

    Raises:
        ValueError: An option is out of range, a target matches nothing or a layer
            of another kind, or the model is not built or already adapted. The model
            is unchanged.
        TypeError: An option is unknown or has the wrong type. The model is unchanged.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    >>> report = kr.enable_randlora(model, rank=2, targets="all-linear")
    >>> report.trainable
    12
    """
    return enable_with_config(model, RandLoRAConfig.of(rank, targets, options))


def _show_options(function: Any) -> None:
    """Let `help` and editors show each option of `RandLoRAConfig`."""
    signature = inspect.signature(function)
    model, *_ = signature.parameters.values()
    config = inspect.Parameter(
        "config",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation="RandLoRAConfig | None",
    )
    parameters = [model, *RandLoRAConfig.parameters(), config]
    function.__signature__ = signature.replace(parameters=parameters)


_show_options(enable_randlora)


def enable_with_config(
    model: keras.Model,
    config: RandLoRAConfig,
    selection: Selection | None = None,
    *,
    bases: Bases | None = None,
) -> Report:
    """Adapt a model as `enable_randlora` does, with given layers or bases.

    Args:
        model: A built model.
        config: The options.
        selection: The layers to adapt and train; default: those that `config` selects.
        bases: With `basis="given"`: `basis_a` of shape `(r, s)` and `basis_b` of
            shape `(l, n * r)`, large enough for every layer.

    Returns:
        A `Report` of the adapted layers and the counts.
    """
    require_plain(model)
    selection = selection or select(model, config)
    require_same_distribution(
        model, selection.adapted, adapter_shapes(model, config, selection)
    )
    warn_of_shared_kernels(sites(model), selection.adapted)
    warn_of_dropout(selection.adapted, config)
    bank = _bank_for(selection, config, bases)
    extra = extra_variables(model, selection, config)
    state = AdaptedState(config, selection, extra, trainable_flags(model))
    models = models_holding(model, selection.layers)
    guard_tasks(model)
    with contextlib.ExitStack() as undo:
        undo.callback(forget, model, state.was_trainable)
        undo.callback(make_plain, selection.layers)
        _attach_all(selection, config, bank)
        train_only(model, extra)
        remember(model, state)
        undo.pop_all()
    follow_changes(models, selection.layers)
    require_new_compile(models)
    return summary(model)


def disable_randlora(model: keras.Model) -> None:
    """Make the layers plain again; the base kernels are unchanged, bit for bit.

    Biases and layers that were fully trained keep their trained values. Restores the
    `trainable` flags from before `enable_randlora`. A compiled model stays compiled;
    its optimizer starts anew if it is fitted again.

    Raises:
        ValueError: The model is not adapted.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> kr.disable_randlora(model)
    >>> [weight.name for weight in model.trainable_weights]
    ['kernel', 'bias']
    """
    state = adapted_state(model)
    layers = state.selection.layers
    models = models_holding(model, layers)
    make_plain(layers)
    follow_changes(models, layers)
    forget(model, state.was_trainable)
    renew_optimizers(models)


def make_plain(layers: Sequence[keras.layers.Layer]) -> None:
    """Remove the update of all layers that have one."""
    for layer in layers:
        if hasattr(layer, "randlora"):
            layer.detach()
        elif isinstance(layer, RandLoRALayer):  # adapting it was cut short
            layer.__class__ = layer.plain_class


def _bank_for(
    selection: Selection, config: RandLoRAConfig, bases: Bases | None
) -> BasisBank:
    shapes = update_shapes(selection, config)
    dtype = float_policy(selection.adapted[0].layer)
    if bases is None:
        return bank_for(shapes, config, dtype)
    if config.basis != GIVEN:
        raise ValueError(
            "Bases are passed in with basis='given' only. Received: "
            f"basis={config.basis!r}."
        )
    bank = GivenBasisBank.of_arrays(*bases, name="randlora_bank", dtype=dtype)
    for site, shape in zip(selection.adapted, shapes, strict=True):
        bank.require_serves(shape, site.path)
    return bank


def _attach_all(selection: Selection, config: RandLoRAConfig, bank: BasisBank) -> None:
    adaptation = Adaptation(config.layer_options, config.trains_adapted_biases, bank)
    for site in shown(selection.adapted, "Adapting", "layer"):
        adapt_layer(site.layer, adaptation)
