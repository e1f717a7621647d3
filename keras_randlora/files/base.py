"""Fingerprint of the base that an adapter was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_randlora.adapt import Site, backbone_of, sites
from keras_randlora.layers import dense_kernel, kind_name, parameter_count
from keras_randlora.tools import keras_internals, to_numpy

# Tolerance of a row's entries, relative to the row's size, between the same weights
# stored in one of these dtypes or modes.
_ROUNDING = {"float16": 2e-3, "bfloat16": 2e-2, "int8": 6e-2, "int4": 0.7}
_EXACT = 1e-5


class Base(NamedTuple):
    """The base of an adapter.

    Attributes:
        kind: Class of the backbone.
        parameters: Number of its parameters.
        held: Storage of its kernels: a dtype, `"int8"` or `"int4"`.
        kernels: Four entries of the first row of each adapted kernel and the row's root
            mean square, by address.
    """

    kind: str
    parameters: int
    held: str
    kernels: dict[str, list[float]]


def base_of(model: keras.Model, adapted: Sequence[Site]) -> Base:
    """Return the fingerprint of the base of a model, plain or adapted."""
    backbone = backbone_of(model)
    first = adapted[0].layer
    dtype = keras_internals.kernel_variable(first).dtype
    return Base(
        kind=kind_name(backbone),
        parameters=parameter_count([backbone, *(s.layer for s in sites(backbone))]),
        held=first.quantization_mode or dtype,
        kernels={site.address: _sample(site.layer) for site in adapted},
    )


def warn_of_another_base(
    model: keras.Model, adapted: Sequence[Site], base: Base, path: Any
) -> None:
    """Warn if the kernels are not those that an adapter was trained on."""
    ours = base_of(model, adapted)
    rounding = max(_ROUNDING.get(held, _EXACT) for held in (ours.held, base.held))
    others = [
        address
        for address, sample in ours.kernels.items()
        if not _alike(sample, base.kernels.get(address, sample), rounding)
    ]
    if others:
        warnings.warn(
            f"The base of model '{model.name}' is not the one that '{path}' was "
            f"trained on: the kernels of {len(others)} of {len(ours.kernels)} adapted "
            f"layers differ, first that of '{others[0]}'. The adapter's base is a "
            f"{base.kind} of {base.parameters:,} parameters, the model's a {ours.kind} "
            f"of {ours.parameters:,}. Load the adapter onto the weights it was trained "
            "on.",
            stacklevel=3,
        )


def _sample(layer: keras.layers.Layer) -> list[float]:
    """Return four entries of the first row of a kernel, and the row's size."""
    if layer.quantization_mode is None:
        kernel = keras_internals.kernel_variable(layer).value
    else:
        kernel = dense_kernel(layer)
    row = to_numpy(kernel[(0,) * (len(kernel.shape) - 1)]).astype("float64")
    places = np.linspace(0, len(row) - 1, 4).round().astype(int)
    return [float(x) for x in (*row[places], np.sqrt(np.mean(row**2)))]


def _alike(ours: list[float], theirs: list[float], rounding: float) -> bool:
    size = max(ours[-1], theirs[-1], *map(abs, ours), *map(abs, theirs))
    return bool(np.allclose(ours, theirs, rtol=0, atol=rounding * size))
