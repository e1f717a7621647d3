"""Private attributes of Keras optimizers and random generators."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_randlora.tools.keras_internals.layers import untrack


def spare_from_muon(is_spared: Callable[[keras.Variable], bool]) -> None:
    """Let Muon update variables with `is_spared(variable)` as AdamW does.

    Muon orthogonalizes the steps of matrices; these variables are not matrices.
    """
    asked = keras.optimizers.Muon._should_use_adamw
    if hasattr(asked, "guarded"):
        return

    @functools.wraps(asked)
    def guarded(self: Any, variable: keras.Variable) -> bool:
        return is_spared(variable) or asked(self, variable)

    guarded.guarded = True  # type: ignore[attr-defined]
    keras.optimizers.Muon._should_use_adamw = guarded


def rate_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the variables of learning rates, also of wrapped optimizers."""
    own = optimizer._learning_rate
    found = [own] if isinstance(own, keras.Variable) else []
    for inner in _wrapped(optimizer):
        found += rate_variables(inner)
    return found


def seed_states(model: keras.layers.Layer) -> list[keras.Variable]:
    """Return the states of a model's random generators, which calls change."""
    weights = {id(weight) for weight in model.weights}
    return [v for v in model.non_trainable_variables if id(v) not in weights]


def schedule_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """Return the learning-rate schedule of an optimizer, or `None`."""
    rate = optimizer._learning_rate
    is_schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    return rate if is_schedule else None


def averages_of(
    optimizer: keras.optimizers.Optimizer,
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Return trained variables and the optimizer's averages of them.

    That is the mean with `use_ema=True`, and the sequence that `ScheduleFreeAdamW`
    averages, in which its `momentum` is.
    """
    found = []
    for inner in _wrapped(optimizer):
        found += averages_of(inner)
    held = []
    if optimizer.built and optimizer.use_ema:
        held.append(getattr(optimizer, "_model_variables_moving_average", []))
    schedule_free = getattr(keras.optimizers, "ScheduleFreeAdamW", None)  # since 3.14
    if schedule_free and optimizer.built and isinstance(optimizer, schedule_free):
        held.append(optimizer._momentums)
    for averages in held:
        pairs = zip(optimizer._trainable_variables, averages, strict=True)
        found += [(variable, mean) for variable, mean in pairs if mean is not None]
    return found


def accumulators_of(
    optimizer: keras.optimizers.Optimizer,
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Return trained variables and the optimizer's gradient accumulators."""
    found = []
    for inner in _wrapped(optimizer):
        found += accumulators_of(inner)
    if optimizer.built and optimizer.gradient_accumulation_steps:
        sums = optimizer._accumulated_gradients
        found += zip(optimizer._trainable_variables, sums, strict=True)
    return found


def _wrapped(
    optimizer: keras.optimizers.Optimizer,
) -> Sequence[keras.optimizers.Optimizer]:
    """Return the optimizers that another one wraps."""
    one = getattr(optimizer, "inner_optimizer", None)
    return [one] if one else getattr(optimizer, "optimizers", ())


def forget_state(optimizer: keras.optimizers.Optimizer) -> None:
    """Reset an optimizer to its unbuilt state, except for its learning rate.

    It is not rebuilt from its configuration, since that fails for an unregistered
    schedule or a callable learning rate.
    """
    for inner in _wrapped(optimizer):
        forget_state(inner)
    if not optimizer.built:
        return
    kept = {id(optimizer._iterations), id(optimizer._learning_rate)}
    for variable in list(optimizer._variables):
        if id(variable) not in kept:
            untrack(optimizer, variable)
    optimizer._trainable_variables = []
    optimizer._trainable_variables_indices = {}
    optimizer.built = False
    optimizer._iterations.assign(0)
