"""Weighted sums of adapters, merged into one model."""

from __future__ import annotations

import contextlib
import math
import numbers
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_randlora.adapt import (
    adapted_state,
    disable_randlora,
    models_holding,
    renew_optimizers,
    require_plain,
    sites,
)
from keras_randlora.files.adapter import adapter_for, load_adapter, require_same_base
from keras_randlora.layers import (
    dense_kernel,
    hold,
    kept,
    named_weights,
    write_kernel,
)
from keras_randlora.tools import assign, copy_of, shown, to_numpy

PathLike = str | os.PathLike[str]


def merge_adapters(model: keras.Model, adapters: Mapping[PathLike, float]) -> None:
    """Merge a weighted sum of adapters into the kernels of a plain model.

    Every kernel becomes `W + sum_i weight_i * update_i`, exactly. The adapters may
    differ in rank, basis, seed and layers. Fully trained layers change by the weighted
    sum of their changes. The model stays plain.

    Args:
        model: A plain model with the base weights of all the adapters.
        adapters: The weight of each adapter file.

    Raises:
        ValueError: The model is adapted, a file is damaged or made for another
            model, or a weight is not finite. The model is unchanged.
        TypeError: A weight is not a number.
        FileNotFoundError: There is no such file.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> for seed, path in enumerate(["a.safetensors", "b.safetensors"]):
    ...     _ = kr.enable_randlora(model, rank=2, targets="d", seed=seed)
    ...     kr.save_adapter(model, path)
    ...     kr.disable_randlora(model)
    >>> kr.merge_adapters(model, {"a.safetensors": 0.7, "b.safetensors": 0.3})
    """
    if not adapters:
        raise ValueError("`adapters` is empty: name at least one adapter file.")
    require_plain(model)
    for path, weight in adapters.items():
        _check_weight(path, weight)
        require_same_base(model, adapter_for(model, path), path)
    linear = [site.layer for site in sites(model) if site.linear]
    models = models_holding(model, linear)
    compiled = [holder for holder in models if holder.compiled]
    totals: dict[str, Change] = {}
    with contextlib.ExitStack() as undo:
        # Adapting temporarily must not change what an error must leave unchanged.
        for holder in compiled:
            undo.callback(setattr, holder, "compiled", True)
            holder.compiled = False
        for path, weight in adapters.items():
            for key, (target, change) in _changes(model, path).items():
                total = totals[key].value if key in totals else 0.0
                totals[key] = Change(target, total + weight * change)
    _add_all(totals)
    renew_optimizers(models)


class Change(NamedTuple):
    """A change of a variable, or of a layer's kernel."""

    target: keras.Variable | keras.layers.Layer
    value: np.ndarray

    def add(self, undo: contextlib.ExitStack) -> None:
        """Add it, and let `undo` restore the former value exactly."""
        target = self.target
        if isinstance(target, keras.Variable):
            undo.callback(assign, target, copy_of(target))
            assign(target, _wide(target) + self.value)
            return
        kernel = np.array(to_numpy(dense_kernel(target)))
        undo.callback(hold, target, kept(target))
        write_kernel(target, kernel + self.value)


def _add_all(changes: dict[str, Change]) -> None:
    """Add all changes or none of them; `changes` is emptied."""
    with contextlib.ExitStack() as undo:
        for key in shown(list(changes), "Merging", "variable"):
            changes.pop(key).add(undo)
        undo.pop_all()


def _changes(model: keras.Model, path: PathLike) -> dict[str, Change]:
    """Return an adapter's changes of variables; the model is unchanged."""
    trained = adapter_for(model, path).tensors
    before = {
        f"{site.address}/{name}": np.array(to_numpy(variable))
        for site in sites(model)
        for name, variable in named_weights(site.layer).items()
        if f"{site.address}/{name}" in trained
    }
    load_adapter(model, path)
    state = adapted_state(model)
    try:
        changes = {
            f"{site.address}/kernel": Change(
                site.layer, _wide(site.layer.randlora.update())
            )
            for site in shown(state.selection.adapted, f"Reading {path}", "layer")
        }
        for key, variable in state.extra.items():
            change = _wide(variable) - _wide(before[key])
            changes[key] = Change(variable, change)
    finally:
        for key, variable in state.extra.items():
            assign(variable, before[key])
        disable_randlora(model)
    return changes


def _check_weight(path: PathLike, weight: Any) -> None:
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        raise TypeError(
            f"The weight of '{path}' must be a number. Received: {weight!r} (of type "
            f"{type(weight).__name__})."
        )
    if not math.isfinite(weight):
        raise ValueError(f"The weight of '{path}' must be finite. Received: {weight}.")


def _wide(array: Any) -> np.ndarray:
    """Return an array in float32, or in float64 if it has that dtype."""
    array = np.array(to_numpy(array))
    return array if array.dtype == "float64" else array.astype("float32")
