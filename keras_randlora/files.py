"""Adapter files: one `.safetensors` that any backend reads.

The tensors are those of `get_adapter`. The header's metadata holds, as JSON, the
format's version, the options, and the base's fingerprint: path and kernel shape of
every adapted layer.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from keras_randlora.adapt import (
    adapted_state,
    disable_randlora,
    enable_with_config,
    is_adapted,
)
from keras_randlora.config import RandLoRAConfig
from keras_randlora.report import Report, summary
from keras_randlora.targets import Site, select_paths, sites
from keras_randlora.weights import check_adapter, get_adapter, set_adapter

FORMAT = "keras-randlora-adapter"
FORMAT_VERSION = 1


class AdapterFile(NamedTuple):
    """The content of an adapter file.

    Attributes:
        config: The options of the adaptation.
        layers: Kernel shape of each adapted layer, by path.
        also_trained: Paths of the layers trained as they are.
        tensors: The trained values, as `get_adapter` returns them.
    """

    config: RandLoRAConfig
    layers: dict[str, tuple[int, ...]]
    also_trained: tuple[str, ...]
    tensors: dict[str, np.ndarray]


def save_adapter(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Write the trained values of an adapted model to one `.safetensors` file.

    The file is written beside its place and renamed, so that a crash leaves the
    former file whole.

    Args:
        model: An adapted model.
        path: Ends in `.safetensors`.

    Raises:
        ValueError: The model is not adapted, the path has another suffix, or a
            trained value is not finite.
        OSError: The file cannot be written.
    """
    path = _checked_suffix(path)
    state = adapted_state(model)
    tensors = get_adapter(model)
    check_adapter(tensors, {name: array.shape for name, array in tensors.items()})
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "config": json.loads(state.config.to_json()),
        "layers": {site.path: _kernel_shape(site) for site in state.selection.adapted},
        "also_trained": [site.path for site in state.selection.also_trained],
    }
    data = save(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        metadata={FORMAT: json.dumps(header, sort_keys=True)},
    )
    _write_atomically(path, data)


def load_adapter(model: keras.Model, path: str | os.PathLike[str]) -> Report:
    """Load an adapter file into a model.

    A plain model is adapted first, with the options and the layers of the file. An
    adapted model must have been adapted with the same ones.

    Args:
        model: A built model with the base weights that the adapter was trained on.
        path: A file that `save_adapter` wrote, on any backend.

    Returns:
        A `Report` of the adapted layers and the counts.

    Raises:
        ValueError: The file is damaged, of another kind or version, was made for
            another model or other options, or holds non-finite values. The model
            is unchanged.
        FileNotFoundError: There is no such file.
    """
    file = read_adapter(path)
    if is_adapted(model):
        _require_same_adaptation(model, file, path)
        set_adapter(model, file.tensors)
        return summary(model)
    _require_same_base(model, file, path)
    selection = select_paths(model, list(file.layers), file.also_trained)
    report = enable_with_config(model, file.config, selection)
    try:
        set_adapter(model, file.tensors)
    except ValueError:
        disable_randlora(model)
        raise
    return report


def read_adapter(path: str | os.PathLike[str]) -> AdapterFile:
    """Read and check an adapter file without a model.

    Raises:
        ValueError: The file is damaged, or of another kind or version.
        FileNotFoundError: There is no such file.
    """
    path = Path(path)
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
    for name, array in tensors.items():
        if not np.all(np.isfinite(array.astype("float32"))):
            raise ValueError(
                f"'{path}' holds values that are not finite, first in '{name}'."
            )
    return AdapterFile(tensors=tensors, **header)


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
            "config": RandLoRAConfig.from_json(json.dumps(header["config"])),
            "layers": {
                layer: tuple(int(size) for size in shape)
                for layer, shape in header["layers"].items()
            },
            "also_trained": tuple(header["also_trained"]),
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"'{path}' cannot be read as an adapter: {error}.") from error


def _require_same_base(model: keras.Model, file: AdapterFile, path: Any) -> None:
    present = {site.path: site for site in sites(model)}
    for layer, shape in file.layers.items():
        if layer not in present or not present[layer].linear:
            raise ValueError(
                f"'{path}' was made for another model: it adapts layer '{layer}', "
                f"which model '{model.name}' does not have."
            )
        found = tuple(_kernel_shape(present[layer]))
        if found != shape:
            raise ValueError(
                f"'{path}' was made for another model: the kernel of layer "
                f"'{layer}' has shape {found} here and {shape} in the file."
            )


def _require_same_adaptation(model: keras.Model, file: AdapterFile, path: Any) -> None:
    state = adapted_state(model)
    mine = {s.path: tuple(_kernel_shape(s)) for s in state.selection.adapted}
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
    for option in ("rank", "alpha", "basis", "sparsity", "seed", "num_bases"):
        ours, theirs = getattr(state.config, option), getattr(file.config, option)
        if ours != theirs:
            raise ValueError(
                f"'{path}' was trained with {option}={theirs!r}, the model is adapted "
                f"with {option}={ours!r}. Call `disable_randlora(model)` first to "
                "load it with its own options."
            )


def _kernel_shape(site: Site) -> list[int]:
    return [int(size) for size in site.layer._kernel.shape]


def _checked_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"An adapter file's name ends in '.safetensors'. Received: '{path}'."
        )
    return path


def _write_atomically(path: Path, data: bytes) -> None:
    """Write beside the file's place, sync, and rename over it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
