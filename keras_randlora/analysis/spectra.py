"""Delta weights as matrices: singular values, rank and effective rank."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_randlora.adapt import all_sites
from keras_randlora.layers import (
    RandLoRALayer,
    dense_kernel,
    is_linear,
    kind_name,
    layout_of,
)
from keras_randlora.tools import to_numpy
from keras_randlora.update import KernelLayout

Array = Any


def update_matrix(layer: keras.layers.Layer, base: Array | None = None) -> np.ndarray:
    """Return the update (delta weight) of a layer's kernel, as a matrix.

    Args:
        layer: A `Dense` or `EinsumDense`: adapted by RandLoRA, with Keras's LoRA
            enabled, or plain.
        base: The kernel before training, in the kernel's shape (`kernels` returns
            it). By default the update of the layer's adapter is used; a fully trained
            layer needs `base`.

    Returns:
        Shape `(in, out)`, float64; for `EinsumDense` the contracted axes of the kernel
        by its output axes. For a batch of kernels, such as experts, `(batch, in, out)`.

    Raises:
        ValueError: The layer has no kernel that is read as a matrix, or neither an
            adapter nor `base` is given.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> kr.analysis.update_matrix(model.get_layer("d")).shape
    (6, 4)
    """
    layout = _layout(layer)
    if base is None:
        added = _added(layer)
        if added is None:
            raise ValueError(
                f"Layer '{layer.path}' has no adapter, so its update is the difference "
                "from the kernel before training: pass `base`. Received: base=None."
            )
    else:
        base = _in_float32(base)
        if base.shape != layout.kernel_shape:
            raise ValueError(
                f"`base` must be the kernel of layer '{layer.path}', of shape "
                f"{layout.kernel_shape}. Received: shape {base.shape}."
            )
        added = _kernel(layer) - base
    return to_numpy(layout.to_matrix(added)).astype("float64")


def update_spectrum(
    update: Array | keras.layers.Layer, base: Array | None = None
) -> np.ndarray:
    """Return the singular values of an update, largest first.

    Args:
        update: A matrix, or a layer, whose `update_matrix` is taken.
        base: For a layer: as in `update_matrix`.

    Returns:
        Shape `(min(in, out),)`, float64.

    Raises:
        ValueError: What is given is no matrix, or as `update_matrix` says.

    Example:
    >>> kr.analysis.update_spectrum(np.diag([1.0, 3.0])).tolist()
    [3.0, 1.0]
    """
    return np.linalg.svd(_matrix(update, base), compute_uv=False)


def update_rank(
    update: Array | keras.layers.Layer,
    base: Array | None = None,
    *,
    tolerance: float | None = None,
) -> int:
    """Return the rank of an update.

    Args:
        update: A matrix, or a layer, whose `update_matrix` is taken.
        base: For a layer: as in `update_matrix`.
        tolerance: Singular values above this share of the largest one count. By default
            `max(in, out)` float32 roundings, as in `np.linalg.matrix_rank`.

    Raises:
        ValueError: What is given is no matrix, or as `update_matrix` says.

    Example:
    >>> kr.analysis.update_rank(np.outer([1.0, 2.0], [1.0, 1.0, 0.0]))
    1
    """
    matrix = _matrix(update, base)
    values = update_spectrum(matrix)
    if tolerance is None:
        tolerance = max(matrix.shape) * float(np.finfo("float32").eps)
    return int(np.sum(values > tolerance * values.max(initial=0.0)))


def effective_rank(
    update: Array | keras.layers.Layer, base: Array | None = None
) -> float:
    """Return the effective rank of an update.

    The exponential of the entropy of the normalized singular values (Roy and Vetterli,
    2007): k if k singular values are equal and the rest zero; 0 for an update of zero.
    For a batch of matrices the mean.

    Args:
        update: A matrix, or a layer, whose `update_matrix` is taken.
        base: For a layer: as in `update_matrix`.

    Returns:
        NaN for an update that is not finite.

    Raises:
        ValueError: What is given is no matrix, or as `update_matrix` says.

    Example:
    >>> round(kr.analysis.effective_rank(np.diag([2.0, 2.0, 0.0])), 6)
    2.0
    """
    if isinstance(update, keras.layers.Layer):
        update = update_matrix(update, base)
    if np.ndim(update) == 3:
        return float(np.mean([effective_rank(matrix) for matrix in update]))
    matrix = _matrix(update, None)
    if not np.isfinite(matrix).all():
        return math.nan
    values = _quick_spectrum(matrix)
    if not values.any():
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))


def kernels(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the kernels of a model's linear layers, including updates.

    Returns:
        `{layer path: kernel}`, float32.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> {path: kernel.shape for path, kernel in kr.analysis.kernels(model).items()}
    {'d': (6, 4)}
    """
    return {
        site.path: _kernel(site.layer)
        for site in all_sites(model, {})
        if is_linear(site.layer) and site.layer.built
    }


def updates(
    model: keras.Model, base: Mapping[str, Array] | None = None
) -> dict[str, np.ndarray]:
    """Return `update_matrix` of every layer that training has changed.

    Args:
        model: A model with adapters, or a fully fine-tuned one.
        base: The result of `kernels(model)` before training. By default the updates of
            the adapters are returned.

    Returns:
        `{layer path: matrix}`, in the model's order.

    Raises:
        ValueError: No layer has an adapter and no `base` is given, or `base` lacks a
            layer of the model.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> before = kr.analysis.kernels(model)
    >>> _ = model.get_layer("d").kernel.assign(before["d"] + 1.0)
    >>> kr.analysis.updates(model, before)["d"].shape
    (6, 4)
    """
    linear = {
        site.path: site.layer
        for site in all_sites(model, {})
        if is_linear(site.layer) and site.layer.built
    }
    if base is None:
        found = {p: update_matrix(x) for p, x in linear.items() if _adapts(x)}
        if not found:
            raise ValueError(
                f"No layer of model '{model.name}' has an adapter: pass as `base` what "
                "`kernels(model)` returned before training. Received: base=None."
            )
        return found
    for path in linear:
        if path not in base:
            raise ValueError(
                f"`base` has no kernel of layer '{path}'. Pass what `kernels(model)` "
                f"returned before training. Received: {len(base)} kernels."
            )
    found = {path: update_matrix(x, base[path]) for path, x in linear.items()}
    return {path: matrix for path, matrix in found.items() if matrix.any()}


def _matrix(update: Array | keras.layers.Layer, base: Array | None) -> np.ndarray:
    """Return the matrix itself, or the update of a layer."""
    if isinstance(update, keras.layers.Layer):
        update = update_matrix(update, base)
    matrix = np.asarray(update, "float64")
    if matrix.ndim != 2:
        raise ValueError(
            f"An update is a matrix. Received: an array of shape {matrix.shape}. Of a "
            "batch of kernels pass one of `update_matrix(layer)`."
        )
    return matrix


def _quick_spectrum(matrix: np.ndarray) -> np.ndarray:
    """Return the singular values, without those below 1e-8 of the largest.

    It uses the smaller Gram matrix, which is several times as fast.
    """
    rows, columns = matrix.shape
    product = matrix @ matrix.T if rows < columns else matrix.T @ matrix
    squares = np.linalg.eigvalsh(product)
    squares[squares < 1e-16 * squares.max(initial=0.0)] = 0.0
    return np.sqrt(squares)


def _adapts(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, RandLoRALayer) or _has_lora(layer)


def _has_lora(layer: keras.layers.Layer) -> bool:
    return bool(getattr(layer, "lora_enabled", False))


def _layout(layer: keras.layers.Layer) -> KernelLayout:
    if not is_linear(layer):
        raise ValueError(
            "The update of a linear layer or a convolution is read as a matrix. "
            f"Received: layer '{layer.path}' of type {kind_name(layer)}."
        )
    return layout_of(layer)


def _added(layer: keras.layers.Layer) -> np.ndarray | None:
    """Return the update of a layer's adapter, `None` without one."""
    if isinstance(layer, RandLoRALayer):
        return _in_float32(layer.randlora.update())
    if _has_lora(layer):
        product = ops.matmul(layer.lora_kernel_a, layer.lora_kernel_b)
        return _in_float32(product) * (layer.lora_alpha / layer.lora_rank)
    return None


def _kernel(layer: keras.layers.Layer) -> np.ndarray:
    kernel, added = _in_float32(dense_kernel(layer)), _added(layer)
    return kernel if added is None else kernel + added


def _in_float32(array: Array) -> np.ndarray:
    return to_numpy(array).astype("float32")
