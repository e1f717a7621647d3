"""How alike two models see the same inputs, layer by layer."""

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
    al., 2019, section 3; RandLoRA's figure 4a). It does not change with rotations and
    with the scale of either; 1 where both are alike up to those.

    Args:
        first: X of shape `(..., features)`: all axes but the last count examples.
        second: Y of shape `(..., features)`, of as many examples.

    Returns:
        A number from 0 to 1.

    Raises:
        ValueError: The numbers of examples differ, are below two, or an activation is
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
    """Return what layers of a model put out for the same inputs.

    Args:
        model: A built model; it is called once, outside of any compiled function.
        inputs: What the model takes.
        paths: Paths of the layers (`kr.summary` shows those that are adapted).
        mask: Which tokens count, of shape `(batch, sequence)`, as the padding mask of
            keras-hub. By default all do.

    Returns:
        `{path: array}` of shape `(examples, features)`, float32.

    Raises:
        ValueError: The model has no layer of a path, or calls it never or several
            times, or its output does not begin as `mask` is shaped.

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
                f"Layer '{path}' is to be called once by model '{model.name}'. It was "
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
        second: Another of the same architecture, trained in another way.
        inputs: What both take.
        paths: Paths of the layers.
        mask: Which tokens count, of shape `(batch, sequence)`. By default all do.

    Raises:
        ValueError: As `layer_outputs` and `cka` say.

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
    """Append what the layer returns to a list for the time of the block."""
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
