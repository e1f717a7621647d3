"""The optimizer's state in a file, to go on training from an adapter file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from keras_randlora.adapt import adapted_state
from keras_randlora.tools import write_atomically

FORMAT = "keras-randlora-optimizer"
FORMAT_VERSION = 1


def save_optimizer(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Write the state of an adapted model's optimizer.

    Together with `save_adapter`'s file it is all that is needed to go on training
    exactly as if there had been no interruption.

    Args:
        model: An adapted, compiled model that has been fitted.
        path: Ends in `.safetensors`.

    Raises:
        ValueError: The model is not adapted, or its optimizer has no state yet or one
            that is not finite.
        OSError: The file cannot be written. The former one is untouched.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> model.compile(keras.optimizers.AdamW(1e-3), "mse")
    >>> _ = model.fit(np.ones((8, 6)), np.zeros((8, 4)), verbose=0)
    >>> kr.save_adapter(model, "adapter.safetensors")
    >>> kr.save_optimizer(model, "optimizer.safetensors")
    """
    adapted_state(model)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        raise ValueError(
            f"Model '{model.name}' has no optimizer state to save. Compile and fit it "
            "first."
        )
    state: dict[str, Any] = {}
    optimizer.save_own_variables(state)
    header = {"version": FORMAT_VERSION, "optimizer": _kind(optimizer)}
    arrays = {key: np.array(value, order="C") for key, value in state.items()}
    for variable, (key, array) in zip(optimizer.variables, arrays.items(), strict=True):
        if not np.isfinite(array.astype("float64")).all():
            raise ValueError(
                f"The optimizer's state '{variable.path}' holds values that are not "
                f"finite (entry {key}). Go on from an earlier file."
            )
    data = save(arrays, metadata={FORMAT: json.dumps(header)})
    write_atomically(Path(path), data)


def load_optimizer(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Restore what `save_optimizer` wrote.

    Args:
        model: An adapted model, compiled with the same kind of optimizer.
        path: The file.

    Raises:
        ValueError: The model is not adapted or not compiled, the file is damaged, or
            it belongs to another kind of optimizer or other variables. The
            optimizer is unchanged.
        FileNotFoundError: There is no such file.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> model.compile(keras.optimizers.AdamW(1e-3), "mse")
    >>> _ = model.fit(np.ones((8, 6)), np.zeros((8, 4)), verbose=0)
    >>> kr.save_optimizer(model, "optimizer.safetensors")
    >>> model.compile(keras.optimizers.AdamW(1e-3), "mse")  # a new optimizer
    >>> kr.load_optimizer(model, "optimizer.safetensors")
    >>> int(model.optimizer.iterations)
    1
    """
    adapted_state(model)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        raise ValueError(
            f"Model '{model.name}' has no optimizer. Call `model.compile(...)` first."
        )
    kind, arrays = _read(Path(path))
    # Files of version 1.0 do not name what a LossScaleOptimizer wraps.
    if kind not in (_kind(optimizer), type(optimizer).__name__):
        raise ValueError(
            f"'{path}' holds the state of {kind}; the model is compiled with "
            f"{_kind(optimizer)}."
        )
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    expected = {
        str(i): tuple(variable.shape) for i, variable in enumerate(optimizer.variables)
    }
    found = {key: array.shape for key, array in arrays.items()}
    if found != expected:
        raise ValueError(
            f"'{path}' belongs to an optimizer of other variables: it holds "
            f"{len(found)} arrays, the model's optimizer has {len(expected)}, or their "
            "shapes differ. Adapt and compile the model as it was when saved."
        )
    optimizer.load_own_variables(arrays)


def _kind(optimizer: keras.optimizers.Optimizer) -> str:
    """Return the name of an optimizer's class, and of the one that it wraps."""
    kind = type(optimizer).__name__
    inner = getattr(optimizer, "inner_optimizer", None)
    return kind if inner is None else f"{kind}({_kind(inner)})"


def _read(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no optimizer file '{path}'.")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})[FORMAT])
            arrays = {key: file.get_tensor(key) for key in file.keys()}
        if header["version"] != FORMAT_VERSION:
            raise ValueError(f"format version {header['version']!r}")
        return header["optimizer"], arrays
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"'{path}' cannot be read as optimizer state written by keras_randlora "
            f"({error})."
        ) from error
