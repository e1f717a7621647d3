"""Adapter files: one `.safetensors` that any backend reads.

The tensors are those of `get_adapter`. The header's metadata holds, as JSON, the format
version, the options, the address and kernel shape of every adapted layer, and the
fingerprint of the base (`files.base`); and a checksum of all this and the tensors. With
`basis="given"` the file holds the bases once, as `basis_a` and `basis_b`; otherwise
they follow from the seed in the options.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from keras_randlora.adapt import (
    Bases,
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
from keras_randlora.config import GIVEN, RandLoRAConfig
from keras_randlora.files.base import Base, base_of, warn_of_another_base
from keras_randlora.files.hub import HubAddress, fetched_file
from keras_randlora.files.metadata import metadata_of
from keras_randlora.files.moments import Moment
from keras_randlora.files.weights import check_adapter, get_adapter, set_adapter
from keras_randlora.layers import kernel_shape, stable_names
from keras_randlora.tools import hosts_of, local_path, write_atomically

FORMAT = "keras-randlora-adapter"
FORMAT_VERSION = 1
CHECKSUM = "sha256"
BASIS_NAMES = ("basis_a", "basis_b")


class AdapterFile(NamedTuple):
    """The content of an adapter file.

    Attributes:
        config: The options of the adaptation.
        layers: Kernel shape of each adapted layer, by address.
        also_trained: Addresses of the layers that are fully trained.
        tensors: The trained values, as `get_adapter` returns them.
        bases: `basis_a` of shape `(r, s)` and `basis_b` of shape `(l, n * r)`
            if they do not follow from the seed, else `None`.
        base: Fingerprint of the base; `None` in a file of version 1.0, which has paths
            instead of addresses.
        moment: Epoch and step of the run at which a callback saved it, or `None`.
        metadata: What else a user of the adapter needs, such as class names.
    """

    config: RandLoRAConfig
    layers: dict[str, tuple[int, ...]]
    also_trained: tuple[str, ...]
    tensors: dict[str, np.ndarray]
    bases: Bases | None
    base: Base | None = None
    moment: Moment | None = None
    metadata: Mapping[str, Any] = MappingProxyType({})


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


def write_adapter(file: AdapterFile, path: str | os.PathLike[str]) -> None:
    """Write the content of an adapter file; see `save_adapter`."""
    path = checked_suffix(path)
    check_adapter(file.tensors, {key: a.shape for key, a in file.tensors.items()})
    # safetensors writes the memory of other arrays as it lies there.
    tensors = {key: np.array(array, order="C") for key, array in file.tensors.items()}
    if file.bases is not None:
        bases = (np.array(basis, order="C") for basis in file.bases)
        tensors |= dict(zip(BASIS_NAMES, bases, strict=True))
    header: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "config": file.config.to_dict(),
        "layers": file.layers,
        "also_trained": file.also_trained,
    }
    if file.base is not None:
        header["base"] = file.base._asdict()
    if file.moment is not None:
        header["moment"] = file.moment._asdict()
    if file.metadata:
        header["metadata"] = dict(file.metadata)
    header[CHECKSUM] = _checksum(header, tensors)
    # One entry: safetensors writes several in no fixed order.
    metadata = {FORMAT: json.dumps(header, sort_keys=True)}
    write_atomically(path, save(tensors, metadata=metadata))


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


def read_adapter(path: str | os.PathLike[str]) -> AdapterFile:
    """Read and check an adapter file without a model.

    Raises:
        ValueError: The file is damaged, or of another kind or version.
        FileNotFoundError: There is no such file.
    """
    path = fetched_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no adapter file '{path}'.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, OSError) as error:
        raise ValueError(
            f"'{path}' is not a readable safetensors file ({error}). It may be "
            "truncated or damaged."
        ) from error
    header = _header(path, metadata)
    stored = json.loads(metadata[FORMAT])
    if stored.pop(CHECKSUM, None) != _checksum(stored, tensors):
        raise ValueError(
            f"'{path}' is damaged: its content does not match its checksum. Copy or "
            "save it again."
        )
    for name, array in tensors.items():
        if not np.all(np.isfinite(array.astype("float32"))):
            raise ValueError(
                f"'{path}' holds values that are not finite, first in '{name}'."
            )
    bases = _bases(path, tensors) if header["config"].basis == GIVEN else None
    return AdapterFile(tensors=_with_stable_names(tensors), bases=bases, **header)


def adapter_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata of an adapter file, without a model.

    Args:
        path: A file of `save_adapter`, or its address on a hub.

    Returns:
        What was passed as `metadata` to `save_adapter` or `RandLoRACheckpoint`;
        `num_classes` and `sequence_length` of a keras-hub classifier.

    Raises:
        ValueError: The file is damaged, or of another kind or version.
        FileNotFoundError: There is no such file.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> names = {"class_names": ["negative", "positive"]}
    >>> kr.save_adapter(model, "adapter.safetensors", metadata=names)
    >>> kr.adapter_metadata("adapter.safetensors")
    {'class_names': ['negative', 'positive']}
    """
    return dict(read_adapter(path).metadata)


def read_moment(path: Path) -> Moment | None:
    """Return the moment of the run in an adapter file, `None` if not recorded."""
    try:
        with safe_open(path, framework="numpy") as file:
            return _header(path, file.metadata() or {})["moment"]
    except (SafetensorError, ValueError, OSError):
        return None  # no adapter file, or a damaged one


def _with_stable_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename nameless weights, for which version 1.0 wrote Keras's names."""

    def number(key: str) -> int:
        digits = re.search(r"/variable_(\d+)$", key)
        return int(digits[1]) if digits else 0

    found: dict[str, np.ndarray] = {}
    groups: dict[str, list[str]] = {}
    for key in sorted(tensors, key=number):
        groups.setdefault(key.rpartition("/")[0], []).append(key)
    for layer, keys in groups.items():
        names = stable_names([key.rpartition("/")[2] for key in keys])
        for key, name in zip(keys, names, strict=True):
            found[f"{layer}/{name}" if layer else name] = tensors[key]
    return found


def _bases(path: Path, tensors: dict[str, np.ndarray]) -> Bases:
    """Take the bases from the tensors."""
    for name in BASIS_NAMES:
        if name not in tensors or tensors[name].ndim != 2:
            raise ValueError(
                f"'{path}' cannot be read as an adapter: it lacks its bases, the "
                f"matrix '{name}'."
            )
    basis_a, basis_b = (tensors.pop(name) for name in BASIS_NAMES)
    return basis_a, basis_b


def _header(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if FORMAT not in metadata:
        raise ValueError(
            f"'{path}' is a safetensors file, but not a keras-randlora adapter."
        )
    try:
        header = json.loads(metadata[FORMAT])
        version = header["version"]
        if version != FORMAT_VERSION:
            raise ValueError(
                f"it has format version {version!r}; this version of keras_randlora "
                f"reads version {FORMAT_VERSION}"
            )
        return {
            "config": RandLoRAConfig.from_dict(header["config"]),
            "layers": {
                layer: tuple(int(size) for size in shape)
                for layer, shape in header["layers"].items()
            },
            "also_trained": tuple(header["also_trained"]),
            "base": Base(**header["base"]) if "base" in header else None,
            "moment": Moment(**header["moment"]) if "moment" in header else None,
            "metadata": dict(header.get("metadata", {})),
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"'{path}' cannot be read as an adapter: {error}.") from error


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


def _checksum(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 of the header and of every tensor with name and shape."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def checked_suffix(path: str | os.PathLike[str]) -> Path:
    """Return the path of an adapter file if its suffix is right.

    Raises:
        ValueError: It does not end in `.safetensors`.
    """
    if HubAddress.parsed(os.fspath(path)) is not None:
        raise ValueError(
            "Adapters are saved to a local file first: `save_adapter(model, "
            f"'adapter.safetensors')`, then `upload_adapter('{path}', "
            "'adapter.safetensors')`."
        )
    path = local_path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"An adapter file's name ends in '.safetensors'. Received: '{path}'."
        )
    return path
