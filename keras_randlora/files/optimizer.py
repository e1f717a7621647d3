"""Optimizer state in a file, to resume training from an adapter file.

| entry | content |
|---|---|
| `0`, `1`, … | the optimizer's variables in its order, without learning rates |
| `rate/0`, … | learning rates that are variables: a schedule has none |
| `seed/0`, …, `seed/torch` | states of random generators, see `tools.seeds` |

The header names the trained entries, as `get_adapter` does, in the optimizer's order.
"""

from __future__ import annotations

import json
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from keras_randlora.adapt import adapted_state, before_training
from keras_randlora.tools import (
    assign,
    hosts_of,
    keras_internals,
    local_path,
    random_states,
    set_random_states,
    to_numpy,
    write_atomically,
)

FORMAT = "keras-randlora-optimizer"
FORMAT_VERSION = 2
_RATE, _SEED = "rate", "seed"


class _Saved(NamedTuple):
    """The content of a file.

    Attributes:
        kind: The class of the optimizer.
        trained: The trained entries in order, `None` in files of version 1.0.
        state: The optimizer's variables without learning rates.
        rates: The learning rates.
        seeds: The states of random generators by name, `None` in files of version 1.0.
    """

    kind: str
    trained: list[str] | None
    state: list[np.ndarray]
    rates: list[np.ndarray]
    seeds: dict[str, np.ndarray] | None


def save_optimizer(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Save the state of an adapted model's optimizer and random generators.

    With the file of `save_adapter` it resumes training exactly as without an
    interruption, dropout included. Of a model over several hosts every process
    calls, and one writes.

    Args:
        model: An adapted, compiled model that has been fitted.
        path: Ends in `.safetensors`.

    Raises:
        ValueError: The model is not adapted, or its optimizer has no state yet or
            values that are not finite.
        OSError: The file cannot be written. The former one is untouched.
        RuntimeError: Not all processes that hold the model called, or it failed in
            another one.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> model.compile(keras.optimizers.AdamW(1e-3), "mse")
    >>> _ = model.fit(np.ones((8, 6)), np.zeros((8, 4)), verbose=0)
    >>> kr.save_adapter(model, "adapter.safetensors")
    >>> kr.save_optimizer(model, "optimizer.safetensors")
    """
    path = local_path(path)
    trained = _trained(model)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        raise ValueError(
            f"Model '{model.name}' has no optimizer state to save. Compile and fit it "
            "first."
        )
    hosts = hosts_of([*model.variables, *optimizer.variables])
    with hosts.together(f"save_optimizer to '{path}'"):
        data = _content(model, optimizer, trained)
        if hosts.writes:
            write_atomically(path, data)


def _content(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, trained: list[str]
) -> bytes:
    """Return what a file of an optimizer's state holds."""
    state, rates = _split(optimizer)
    held: dict[str, np.ndarray] = {}
    for prefix, variables in (("", state), (f"{_RATE}/", rates)):
        for i, variable in enumerate(variables):
            array = held[f"{prefix}{i}"] = np.array(to_numpy(variable), order="C")
            if not np.isfinite(array.astype("float64")).all():
                raise ValueError(
                    f"The optimizer's state '{variable.path}' holds values that are "
                    "not finite. Resume from an earlier file."
                )
    for name, seed in random_states(model).items():
        held[f"{_SEED}/{name}"] = np.array(seed, order="C")
    header = {
        "version": FORMAT_VERSION,
        "optimizer": _kind(optimizer),
        "trained": trained,
    }
    return save(held, metadata={FORMAT: json.dumps(header)})


def load_optimizer(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Load the state that `save_optimizer` saved.

    Args:
        model: An adapted model, compiled with the same kind of optimizer.
        path: The file.

    Raises:
        ValueError: The model is not adapted or not compiled, the file is damaged, or
            it belongs to another kind of optimizer or other variables. The
            optimizer is unchanged.
        FileNotFoundError: There is no such file, or not for every process.
        RuntimeError: Not all processes that hold the model called.

    Warns:
        UserWarning: The saved learning rate replaces the compiled one; or one of the
            two is a schedule, and the compiled one stays.

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
    trained = _trained(model)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        raise ValueError(
            f"Model '{model.name}' has no optimizer. Call `model.compile(...)` first."
        )
    path = local_path(path)
    variables = [*model.variables, *optimizer.variables]
    hosts_of(variables).require_same_files("load_optimizer", [path])
    saved = _read(path)
    # Files of version 1.0 do not name what a LossScaleOptimizer wraps.
    if saved.kind not in (_kind(optimizer), type(optimizer).__name__):
        raise ValueError(
            f"'{path}' holds the state of {saved.kind}; the model is compiled with "
            f"{_kind(optimizer)}."
        )
    _require_same_trained(path, saved, trained)
    was_built = optimizer.built
    if not was_built:
        optimizer.build(model.trainable_variables)
    state, rates = _split(optimizer)
    if saved.trained is None:
        saved = _without_rates(saved, optimizer, rates)
    try:
        _require_same_shapes(state, saved.state)
        if saved.seeds is not None:
            set_random_states(model, saved.seeds)
            before_training(model, partial(set_random_states, states=saved.seeds))
    except ValueError as error:
        if not was_built:
            keras_internals.forget_state(optimizer)
        raise ValueError(
            f"'{path}' does not fit model '{model.name}': {error}. Adapt and compile "
            "the model as it was when saved."
        ) from error
    for variable, array in zip(state, saved.state, strict=True):
        assign(variable, array)
    _load_rates(path, optimizer, rates, saved.rates)


def _load_rates(
    path: Any,
    optimizer: keras.optimizers.Optimizer,
    rates: list[keras.Variable],
    saved: list[np.ndarray],
) -> None:
    """Restore learning rates, and warn about changes of the compiled ones."""
    if len(rates) != len(saved):
        was = "constant" if saved else "scheduled"
        warnings.warn(
            f"'{path}' was saved with a {was} learning rate. The one that the model is "
            "compiled with stays; a schedule resumes at step "
            f"{int(to_numpy(optimizer.iterations))}.",
            stacklevel=3,
        )
        return
    for variable, array in zip(rates, saved, strict=True):
        before = float(to_numpy(variable))
        assign(variable, array)
        if not np.isclose(before, float(array), rtol=1e-6):
            warnings.warn(
                f"The learning rate is {float(array):g} again, as when '{path}' was "
                f"saved; the model was compiled with {before:g}. For another one set "
                "`model.optimizer.learning_rate` after `load_optimizer`.",
                stacklevel=3,
            )


def _require_same_trained(path: Any, saved: _Saved, trained: list[str]) -> None:
    """Refuse the state of other variables, even with the same shapes."""
    if saved.trained is None or saved.trained == trained:
        return
    others = [a for a, b in zip(saved.trained, trained, strict=False) if a != b]
    first = others[0] if others else sorted({*saved.trained} ^ {*trained})[0]
    raise ValueError(
        f"'{path}' belongs to an optimizer of other variables: it was saved for "
        f"{len(saved.trained)} of them and the model trains {len(trained)}; the first "
        f"that differs is '{first}'. Adapt the model as it was when saved."
    )


def _require_same_shapes(
    variables: list[keras.Variable], arrays: list[np.ndarray]
) -> None:
    found = [array.shape for array in arrays]
    expected = [tuple(variable.shape) for variable in variables]
    if found != expected:
        raise ValueError(
            f"it belongs to an optimizer of other variables: it holds {len(found)} "
            f"arrays, the model's optimizer has {len(expected)}, or their shapes differ"
        )


def _without_rates(
    saved: _Saved, optimizer: keras.optimizers.Optimizer, rates: list[keras.Variable]
) -> _Saved:
    """Remove the learning rates from the state of a file of version 1.0.

    They are at the optimizer's positions; for a compiled schedule, which has none, that
    is after the step count.
    """
    places = [
        i
        for i, variable in enumerate(optimizer.variables)
        if any(variable is rate for rate in rates)
    ]
    size = len(optimizer.variables)
    if not places and len(saved.state) == size + 1 and saved.state[1].shape == ():
        places, size = [1], size + 1
    if len(saved.state) != size:  # it was saved with a schedule
        return saved
    return saved._replace(
        state=[array for i, array in enumerate(saved.state) if i not in places],
        rates=[saved.state[place] for place in places],
    )


def _split(
    optimizer: keras.optimizers.Optimizer,
) -> tuple[list[keras.Variable], list[keras.Variable]]:
    """Return an optimizer's other variables, and its learning rates."""
    rates = {id(rate) for rate in keras_internals.rate_variables(optimizer)}
    variables = optimizer.variables
    return (
        [variable for variable in variables if id(variable) not in rates],
        [variable for variable in variables if id(variable) in rates],
    )


def _trained(model: keras.Model) -> list[str]:
    """Return the names of `get_adapter` for the trained variables, in order."""
    names = {id(v): name for name, v in adapted_state(model).variables().items()}
    return [names.get(id(v), v.path) for v in model.trainable_variables]


def _kind(optimizer: keras.optimizers.Optimizer) -> str:
    """Return the class names of an optimizer and of the one that it wraps."""
    kind = type(optimizer).__name__
    inner = getattr(optimizer, "inner_optimizer", None)
    return kind if inner is None else f"{kind}({_kind(inner)})"


def _read(path: Path) -> _Saved:
    if not path.is_file():
        raise FileNotFoundError(f"There is no optimizer file '{path}'.")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})[FORMAT])
            arrays = {key: file.get_tensor(key) for key in file.keys()}
        version = header["version"]
        if version not in (1, FORMAT_VERSION):
            raise ValueError(f"format version {version!r}")
        return _Saved(
            kind=header["optimizer"],
            trained=header["trained"] if version > 1 else None,
            state=_numbered(arrays, ""),
            rates=_numbered(arrays, f"{_RATE}/"),
            seeds=_seeds(arrays) if version > 1 else None,
        )
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"'{path}' cannot be read as optimizer state written by keras_randlora "
            f"({error})."
        ) from error


def _seeds(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the entries `seed/<name>` by name."""
    prefix = f"{_SEED}/"
    return {
        key.removeprefix(prefix): array
        for key, array in arrays.items()
        if key.startswith(prefix)
    }


def _numbered(arrays: dict[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    """Return the entries `<prefix>0`, `<prefix>1`, …, up to the first missing one."""
    found: list[np.ndarray] = []
    while (name := f"{prefix}{len(found)}") in arrays:
        found.append(arrays[name])
    return found
