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

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from keras_randlora.adapt import Bases
from keras_randlora.config import GIVEN, RandLoRAConfig
from keras_randlora.files.base import Base
from keras_randlora.files.hub import HubAddress, fetched_file
from keras_randlora.files.moments import Moment
from keras_randlora.files.weights import check_adapter
from keras_randlora.layers import stable_names
from keras_randlora.tools import local_path, write_atomically

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


def _checksum(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    """Return the SHA-256 of the header and of every tensor with name and shape."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
