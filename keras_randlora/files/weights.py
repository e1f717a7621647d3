"""The trained values of an adapted model as a dictionary of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_randlora.adapt import adapted_state, follow_values
from keras_randlora.tools import assign, hosts_of, to_numpy


def adapter_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Return λ and γ of every adapted layer, and the other trained variables.

    Keys are `<layer path>/lambda`, `<layer path>/gamma` and, for biases and fully
    trained layers, `<layer path>/<variable name>`.

    Raises:
        ValueError: The model is not adapted.
    """
    return adapted_state(model).variables()


def get_adapter(model: keras.Model) -> dict[str, np.ndarray]:
    """Return a copy of the trained values, `{path: array}`.

    Returns:
        λ of shape `(r, n)` under `<layer path>/lambda`, γ of shape `(n, s)` under
        `<layer path>/gamma`, both float32, and the other trained variables.

    Raises:
        ValueError: The model is not adapted.
        RuntimeError: Some of them are divided over hosts, and not all processes called.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> {path: array.shape for path, array in kr.get_adapter(model).items()}
    {'d/lambda': (2, 2), 'd/gamma': (2, 4)}
    """
    variables = adapter_variables(model)
    with hosts_of(variables.values(), divided=True).together("get_adapter"):
        return {path: np.array(to_numpy(v)) for path, v in variables.items()}


def set_adapter(model: keras.Model, state: Mapping[str, Any]) -> None:
    """Set the trained values from a dictionary of `get_adapter`.

    Nothing is compiled again: adapters switch by assigning arrays. An optimizer's
    averages of them (`use_ema=True`, `ScheduleFreeAdamW`) restart. Of a model over
    several hosts every process passes the same.

    Raises:
        ValueError: The model is not adapted, or `state` has a missing, unknown,
            misshapen or non-finite entry, or another one in another process. The model
            is unchanged.
        RuntimeError: Not all processes that hold the model called, or `state` was
            refused in another one.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> untrained = kr.get_adapter(model)
    >>> trained = {**untrained, "d/lambda": np.ones((2, 2))}
    >>> kr.set_adapter(model, trained)
    >>> kr.get_adapter(model)["d/lambda"].tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    variables = adapter_variables(model)
    hosts = hosts_of(variables.values())
    with hosts.together("set_adapter"):
        arrays = check_adapter(
            state, {path: tuple(variable.shape) for path, variable in variables.items()}
        )
    hosts.require_same("set_adapter", arrays.items(), "an adapter")
    for path, variable in variables.items():
        assign(variable, arrays[path])
    follow_values(model, list(variables.values()))


def require_finite(model: keras.Model) -> None:
    """Check that an adapter file of the model can be saved.

    Raises:
        ValueError: The model is not adapted, or a trained value is not finite.
    """
    state = get_adapter(model)
    check_adapter(state, {path: array.shape for path, array in state.items()})


def check_adapter(
    state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Return `state` as arrays if it has exactly these entries, shapes, and is finite.

    Raises:
        ValueError: An entry is wrong; the message names the first.
    """
    arrays = {}
    for path, shape in shapes.items():
        if path not in state:
            raise ValueError(f"The adapter has no entry '{path}' of shape {shape}.")
        array = arrays[path] = to_numpy(state[path])
        if array.shape != shape:
            raise ValueError(
                f"The adapter's entry '{path}' has shape {array.shape}; the model "
                f"expects {shape}."
            )
        if array.dtype.kind in "OSUc":
            raise ValueError(
                f"The adapter's entry '{path}' holds no real numbers, but "
                f"{array.dtype.name}."
            )
        with np.errstate(over="ignore"):
            finite = np.isfinite(array.astype("float32"))
        if not np.all(finite):
            raise ValueError(
                f"The adapter's entry '{path}' holds values that are not finite."
            )
    for path in state:
        if path not in shapes:
            raise ValueError(
                f"The adapter's entry '{path}' belongs to no adapted layer of the "
                "model."
            )
    return arrays
