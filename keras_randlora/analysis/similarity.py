"""Layer-wise linear CKA between two models."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_randlora.adapt import sites
from keras_randlora.tools import to_numpy

Array = Any


def cka(first: Array, second: Array) -> float:
    """Return the linear centered kernel alignment of two activations.

    `|YᵀX|² / (|XᵀX| · |YᵀY|)` with centered columns and Frobenius norms (Kornblith et
    al., 2019, section 3; RandLoRA's figure 4a). It is invariant to rotation and scale
    of either; 1 if both are equal up to these.

    Args:
        first: X of shape `(..., features)`; all axes but the last are examples.
        second: Y of shape `(..., features)`, with as many examples.

    Returns:
        A value from 0 to 1.

    Raises:
        ValueError: The numbers of examples differ or are below two, or an activation is
            the same for all examples.

    Example:
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(kr.analysis.cka(x, 3 * x), 6)
    1.0
    """
    x, y = _centered(first), _centered(second)
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(
            "Activations of the same examples, two at least, are compared. Received: "
            f"{len(x)} and {len(y)} examples."
        )
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    if not norms > 0:
        raise ValueError(
            "An activation that is the same for all examples has no similarity."
        )
    return float(np.linalg.norm(y.T @ x) ** 2 / norms)


def layer_outputs(
    model: keras.Model, inputs: Any, paths: Sequence[str], mask: Array | None = None
) -> dict[str, np.ndarray]:
    """Return the outputs of a model's layers for the same inputs.

    Args:
        model: A built model; it is called once, outside of any compiled function.
        inputs: The inputs of the model.
        paths: Paths of the layers (`kr.summary` shows the adapted ones).
        mask: The tokens that count, of shape `(batch, sequence)`, as the padding mask
            of keras-hub. By default all do.

    Returns:
        `{path: array}` of shape `(examples, features)`, float32.

    Raises:
        ValueError: The model has no layer with such a path, calls it never or several
            times, or its output's shape does not begin with that of `mask`.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> outputs = kr.analysis.layer_outputs(model, np.ones((5, 6)), ["d"])
    >>> outputs["d"].shape
    (5, 4)
    """
    at = {site.path: site.layer for site in sites(model)}
    for path in paths:
        if path not in at:
            raise ValueError(f"Model '{model.name}' has no layer '{path}'.")
    seen: dict[str, list[Array]] = {path: [] for path in paths}
    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(_recorded(at[path], seen[path]))
        model(inputs, training=False)
    found = {}
    for path, outputs in seen.items():
        if len(outputs) != 1:
            raise ValueError(
                f"Layer '{path}' must be called once by model '{model.name}'. It was "
                f"called {len(outputs)} times."
            )
        found[path] = _examples(path, outputs[0], mask)
    return found


def layer_cka(
    first: keras.Model,
    second: keras.Model,
    inputs: Any,
    paths: Sequence[str],
    mask: Array | None = None,
) -> dict[str, float]:
    """Return the `cka` of two models' activations after each of the layers.

    Args:
        first: A model.
        second: A model of the same architecture, trained differently.
        inputs: The inputs of both.
        paths: Paths of the layers.
        mask: The tokens that count, of shape `(batch, sequence)`. By default all do.

    Raises:
        ValueError: As for `layer_outputs` and `cka`.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> x = np.random.default_rng(0).normal(size=(50, 6))
    >>> likeness = kr.analysis.layer_cka(model, model, x, ["d"])
    >>> round(likeness["d"], 4)
    1.0
    """
    mine = layer_outputs(first, inputs, paths, mask)
    other = layer_outputs(second, inputs, paths, mask)
    return {path: cka(mine[path], other[path]) for path in paths}


@contextlib.contextmanager
def _recorded(layer: keras.layers.Layer, outputs: list[Array]) -> Iterator[None]:
    """Append the outputs of a layer to a list, inside a block."""
    name = "call" if layer.quantization_mode is None else "quantized_call"
    call = getattr(layer, name)

    def recording(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        outputs.append(keras.tree.flatten(result)[0])
        return result

    object.__setattr__(layer, name, recording)
    try:
        yield
    finally:
        object.__delattr__(layer, name)


def _examples(path: str, output: Array, mask: Array | None) -> np.ndarray:
    array = to_numpy(output).astype("float32")
    if mask is None:
        return array.reshape(-1, array.shape[-1])
    counted = to_numpy(mask).astype(bool)
    if array.shape[: counted.ndim] != counted.shape:
        raise ValueError(
            f"The output of layer '{path}', of shape {array.shape}, does not begin as "
            f"`mask`, of shape {counted.shape}."
        )
    return array[counted].reshape(-1, array.shape[-1])


def _centered(activations: Array) -> np.ndarray:
    array = to_numpy(activations).astype("float64")
    array = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(0, 1)
    return array - array.mean(axis=0, keepdims=True) if len(array) else array
