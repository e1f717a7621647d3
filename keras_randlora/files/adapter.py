"""Saving an adapter, and loading it into a plain model or an adapted one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_randlora.adapt import (
    Report,
    adapted_state,
    adapter_shapes,
    all_sites,
    enable_with_config,
    given_bases,
    is_adapted,
    select_addresses,
    sites,
    summary,
    warn_of_unsaved,
    warn_of_zero_update,
)
from keras_randlora.files.adapter_file import (
    BASIS_NAMES,
    AdapterFile,
    checked_suffix,
    read_adapter,
    write_adapter,
)
from keras_randlora.files.base import base_of, warn_of_another_base
from keras_randlora.files.hub import fetched_file
from keras_randlora.files.metadata import metadata_of
from keras_randlora.files.moments import Moment
from keras_randlora.files.weights import check_adapter, get_adapter, set_adapter
from keras_randlora.layers import kernel_shape
from keras_randlora.tools import hosts_of


def save_adapter(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Save the trained values of an adapted model to one `.safetensors` file.

    The file is replaced atomically: a crash leaves the former file whole. Of a
    model over several hosts every process calls; one writes, and all return when the
    file is complete.

    Args:
        model: An adapted model.
        path: Ends in `.safetensors`.
        metadata: What else a user of the adapter needs, as JSON holds it:
            `{"class_names": ["negative", "positive"]}`. Number of classes and sequence
            length of a keras-hub classifier are added. `adapter_metadata` reads it.

    Raises:
        ValueError: The model is not adapted, the path has another suffix, a trained
            value is not finite, or the number of class names is not that of the
            classes.
        TypeError: JSON cannot hold `metadata`.
        OSError: The file cannot be written.
        RuntimeError: Not all processes that hold the model called, or it failed in
            another one.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> kr.save_adapter(model, "adapter.safetensors")
    >>> kr.disable_randlora(model)
    >>> kr.load_adapter(model, "adapter.safetensors").trainable
    12
    """
    save_adapter_of(model, path, None, metadata)


def save_adapter_of(
    model: keras.Model,
    path: str | os.PathLike[str],
    moment: Moment | None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Save an adapter file that records the moment of the run."""
    state = adapted_state(model)
    path = checked_suffix(path)
    complete = metadata_of(model, metadata)
    hosts = hosts_of(model.variables)
    with hosts.together(f"save_adapter to '{path}'"):
        warn_of_zero_update(model, state.selection.adapted)
        warn_of_unsaved(model, state.variables().values())
        adapted = state.selection.adapted
        file = AdapterFile(
            config=state.config,
            layers={site.address: kernel_shape(site.layer) for site in adapted},
            also_trained=tuple(site.address for site in state.selection.also_trained),
            tensors=get_adapter(model),
            bases=given_bases(model),
            base=base_of(model, adapted),
            moment=moment,
            metadata=complete,
        )
        if hosts.writes:
            write_adapter(file, path)


def load_adapter(model: keras.Model, path: str | os.PathLike[str]) -> Report:
    """Load an adapter file into a model.

    A plain model is adapted first, with the options and layers of the file. An adapted
    model must have the same options and layers.

    Args:
        model: A built model with the base weights that the adapter was trained on.
        path: A file of `save_adapter`, from any backend; or its address on a hub, such
            as `"hf://user/name"` (see `files.hub`). For a model over several hosts
            every process calls, and reads the same file.

    Returns:
        A `Report` of the adapted layers and the counts.

    Raises:
        ValueError: The file is damaged, of another kind or version, was made for
            another model or other options, or holds non-finite values. The model
            is unchanged.
        FileNotFoundError: There is no such file, or not for every process.
        PermissionError: The account may not read it on the hub.
        ConnectionError: It is not in the local cache, and the hub cannot be reached.
        RuntimeError: Not all processes that hold the model called.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> kr.save_adapter(model, "adapter.safetensors")
    >>> fresh = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> kr.load_adapter(fresh, "adapter.safetensors").layers[0].path
    'd'
    """
    place = fetched_file(path)
    hosts_of(model.variables).require_same_files("load_adapter", [place])
    file = adapter_for(model, place)
    if is_adapted(model):
        _require_same_adaptation(model, file, path)
        set_adapter(model, file.tensors)
        _warn_of_another_base(model, file, path)
        return summary(model)
    require_same_base(model, file, path)
    axes = dict(file.config.weight_axes)
    selection = select_addresses(model, list(file.layers), file.also_trained, axes)
    check_adapter(file.tensors, adapter_shapes(model, file.config, selection))
    report = enable_with_config(model, file.config, selection, bases=file.bases)
    set_adapter(model, file.tensors)
    _warn_of_another_base(model, file, path)
    return report


def _warn_of_another_base(model: keras.Model, file: AdapterFile, path: Any) -> None:
    if file.base is not None:
        adapted = adapted_state(model).selection.adapted
        warn_of_another_base(model, adapted, file.base, path)


def adapter_for(model: keras.Model, path: str | os.PathLike[str]) -> AdapterFile:
    """Read an adapter file, with the addresses of a model's layers.

    Version 1.0 wrote Keras's paths.

    Raises:
        ValueError: The file is damaged, or of another kind or version.
        FileNotFoundError: There is no such file.
    """
    file = read_adapter(path)
    if file.base is not None:
        return file
    addresses = {site.path: site.address for site in sites(model)}

    def address(path: str) -> str:
        return addresses.get(path, path)

    def entry(key: str) -> str:
        layer, _, name = key.rpartition("/")
        return f"{address(layer)}/{name}"

    return file._replace(
        layers={address(path): shape for path, shape in file.layers.items()},
        also_trained=tuple(map(address, file.also_trained)),
        tensors={entry(key): array for key, array in file.tensors.items()},
    )


def require_same_base(model: keras.Model, file: AdapterFile, path: Any) -> None:
    """Check that a plain model has the layers and kernel shapes of the file.

    Raises:
        ValueError: A layer is missing or differs; the message names the first.
    """
    everything = all_sites(model, dict(file.config.weight_axes))
    present = {site.address: site for site in everything}
    for layer, shape in file.layers.items():
        if layer not in present or not present[layer].linear:
            raise ValueError(
                f"'{path}' was made for another model: it adapts layer '{layer}', "
                f"which model '{model.name}' does not have."
            )
        found = kernel_shape(present[layer].layer)
        if found != shape:
            raise ValueError(
                f"'{path}' was made for another model: the kernel of layer "
                f"'{layer}' has shape {found} here and {shape} in the file."
            )


# The options that determine the update from λ and γ.
_MEANING = (
    "rank",
    "alpha",
    "basis",
    "sparsity",
    "seed",
    "num_bases",
    "shared_in_batch",
)


def _require_same_adaptation(model: keras.Model, file: AdapterFile, path: Any) -> None:
    state = adapted_state(model)
    mine = {s.address: kernel_shape(s.layer) for s in state.selection.adapted}
    for layer in sorted(set(mine) ^ set(file.layers)):
        where = "model" if layer in mine else "file"
        raise ValueError(
            f"'{path}' does not fit: layer '{layer}' is adapted in the {where} only. "
            "Call `disable_randlora(model)` first to load it with its own options."
        )
    for layer, shape in file.layers.items():
        if mine[layer] != shape:
            raise ValueError(
                f"'{path}' was made for another model: the kernel of layer "
                f"'{layer}' has shape {mine[layer]} here and {shape} in the file."
            )
    for option in _MEANING:
        ours, theirs = getattr(state.config, option), getattr(file.config, option)
        if ours != theirs:
            raise ValueError(
                f"'{path}' was trained with {option}={theirs!r}, the model is adapted "
                f"with {option}={ours!r}. Call `disable_randlora(model)` first to "
                "load it with its own options."
            )
    _require_same_bases(model, file, path)


def _require_same_bases(model: keras.Model, file: AdapterFile, path: Any) -> None:
    bank = adapted_state(model).selection.adapted[0].layer.bank
    if not bank.given or file.bases is None:
        return
    for name, ours, theirs in zip(BASIS_NAMES, bank.draw(), file.bases, strict=True):
        if not np.array_equal(ours, bank.rounded(theirs)):
            raise ValueError(
                f"'{path}' was trained with other bases than the model is adapted "
                f"with: its '{name}' differs. Call `disable_randlora(model)` first "
                "to load it with its own bases."
            )
