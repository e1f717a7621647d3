"""Sanity warnings, and checks for NaN and Inf."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_randlora.adapt.sites import Site
from keras_randlora.config import LayerOptions
from keras_randlora.layers import holder_of, layout_of
from keras_randlora.tools import keras_internals, to_numpy

# Optimizers whose steps are about as large as the learning rate, whatever the gradient.
# By name, since `ScheduleFreeAdamW` is new in Keras 3.14.
_NORMALIZING = tuple(
    getattr(keras.optimizers, name)
    for name in (
        "Adam",
        "Adamax",
        "Lion",
        "Muon",
        "Nadam",
        "RMSprop",
        "ScheduleFreeAdamW",
    )
    if hasattr(keras.optimizers, name)
)
# The largest `alpha / rank * learning_rate` without a warning. `examples/vision`
# trained with 0.06 and ended at chance with 0.2, with every basis and rank tried.
LARGEST_STEP = 0.1


def warn_of_shared_kernels(everything: Sequence[Site], adapted: Sequence[Site]) -> None:
    """Warn of adapted kernels that another layer of the model uses too."""
    own = {id(one) for s in adapted for one in (s.layer, holder_of(s.layer))}
    holders = {
        id(variable): site.path
        for site in everything
        if id(site.layer) not in own
        for variable in keras_internals.own_variables(site.layer)
    }
    for site in adapted:
        other = holders.get(id(keras_internals.kernel_variable(site.layer)))
        if other is not None:
            warnings.warn(
                f"Layer '{site.path}' shares its kernel with layer '{other}' (tied "
                f"weights). The update belongs to '{site.path}' only, but merging "
                "writes it into the kernel of both, which changes the outputs: leave "
                f"the layer out (exclude=['{site.path}']), or do not merge.",
                stacklevel=4,
            )


def warn_of_dropout(adapted: Sequence[Site], options: LayerOptions) -> None:
    """Warn of dropout on kernels that are read: it applies to a product's input."""
    read = [s.path for s in adapted if layout_of(s.layer).equation is None]
    if options.dropout and read:
        more = f" and {len(read) - 1} more" if len(read) > 1 else ""
        warnings.warn(
            f"`dropout` has no effect on '{read[0]}'{more}: the layer that holds this "
            "weight computes the product itself. The other layers have dropout.",
            stacklevel=4,
        )


def require_finite_updates(adapted: Sequence[Site]) -> None:
    """Check that merged kernels are finite.

    Raises:
        ValueError: λ or γ of a layer is not finite, or its merged kernel is too large
            for float16.
    """
    for site in adapted:
        layer = site.layer
        factors = (layer.randlora.lambda_, layer.randlora.gamma)
        if not all(np.isfinite(to_numpy(f)).all() for f in factors):
            problem = "λ or γ is not finite"
        elif layer.variable_dtype == "float16" and not _is_finite(
            layer.merged_kernel()
        ):
            problem = "the merged kernel is too large for float16"
        else:
            continue
        raise ValueError(
            f"The update of layer '{site.path}' cannot be merged: {problem}. Load an "
            "adapter from before training diverged, or call `disable_randlora(model)`."
        )


def warn_of_large_steps(model: keras.Model, options: LayerOptions) -> None:
    """Warn of a learning rate that is known to diverge at the scale of the update.

    A step of Adam changes each λ by about the learning rate, and a kernel by about
    `alpha / rank * learning_rate` of its own size.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not isinstance(optimizer, _NORMALIZING):
        return
    rate = _largest_rate(optimizer)
    scale = abs(options.alpha) / options.rank
    if scale * rate > LARGEST_STEP * (1 + 1e-6):
        warnings.warn(
            f"The learning rate {rate:g} is known to diverge with alpha / rank = "
            f"{scale:g}: each step of {type(optimizer).__name__} changes the adapted "
            f"kernels by about {scale * rate:.0%}. Take a learning rate of at most "
            f"{LARGEST_STEP / scale:g} (1e-4 to 3e-3 is usual), or a smaller alpha.",
            stacklevel=3,
        )


def warn_of_unsaved(model: keras.Model, saved: Iterable[keras.Variable]) -> None:
    """Warn of trained variables that an adapter file does not hold."""
    held = {id(variable) for variable in saved}
    others = [v.path for v in model.trainable_weights if id(v) not in held]
    if others:
        named = ", ".join(f"'{path}'" for path in others[:3])
        more = ", …" if len(others) > 3 else ""
        warnings.warn(
            f"Model '{model.name}' trains {len(others)} variables that an adapter file "
            f"does not hold: {named}{more}. They were made trainable after "
            "`enable_randlora`. Freeze them, or name their layers in its `also_train`, "
            "so that they are saved.",
            stacklevel=3,
        )


def warn_of_zero_update(model: keras.Model, adapted: Sequence[Site]) -> None:
    """Warn if every λ is zero after fitting."""
    optimizer = getattr(model, "optimizer", None)
    if not model.compiled or optimizer is None or not optimizer.built:
        return
    steps = int(to_numpy(optimizer.iterations))
    if steps and not any(
        np.any(to_numpy(site.layer.randlora.lambda_)) for site in adapted
    ):
        warnings.warn(
            f"The update of model '{model.name}' is zero after {steps} steps of "
            "training: no λ has moved. Were the layers frozen after "
            "`enable_randlora`, the learning rate zero, or another model fitted?",
            stacklevel=3,
        )


def _largest_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Return the learning rate; for a schedule about its largest."""
    schedule = keras_internals.schedule_of(optimizer)
    if schedule is None:
        return float(to_numpy(optimizer.learning_rate))
    steps = {0, *(round(2 ** (power / 2)) for power in range(41))}
    return max(float(to_numpy(schedule(np.float32(step)))) for step in steps)


def _is_finite(tensor: Any) -> bool:
    return bool(to_numpy(ops.all(ops.isfinite(tensor))))
