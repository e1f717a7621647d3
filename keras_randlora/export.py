"""Artefacts of the merged model, for people who have neither Keras nor this package.

A format that Keras writes on one backend only is written there: a model that runs
on another one travels through a temporary `.keras` file to a process that has the
right backend.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras

from keras_randlora.adapt import adapted_state, merged

Writer = Callable[[keras.Model, str], Any]


def _keras_export(format: str) -> Writer:
    return lambda model, path: model.export(path, format=format, verbose=False)


# Each format: how it is written, and the one backend that writes it, if only one.
# TensorFlow keeps both the batch and the sequence dimension of a text model open;
# jax2tf fails on two open dimensions, and Keras has no SavedModel from torch.
FORMATS: dict[str, tuple[Writer, str | None]] = {
    "tf_saved_model": (_keras_export("tf_saved_model"), "tensorflow"),
    "keras": (lambda model, path: model.save(path), None),
    "preset": (lambda model, path: model.save_to_preset(path), None),
}


def export_merged(
    model: keras.Model,
    path: str | os.PathLike[str],
    format: str = "tf_saved_model",
    *,
    overwrite: bool = False,
) -> None:
    """Write the model with merged kernels, without a trace of the adapter.

    The adapted model in memory is unchanged. On JAX and torch a TensorFlow
    SavedModel is written by a second process that runs TensorFlow, because Keras
    cannot write one with open batch and sequence dimensions there.

    Args:
        model: An adapted model.
        path: Where to write: a directory for `"tf_saved_model"` and `"preset"`, a
            file ending in `.keras` for `"keras"`.
        format: `"tf_saved_model"` (inputs named as the model's), `"keras"`, or
            `"preset"` (a keras-hub preset).
        overwrite: Whether to replace what stands at `path`.

    Raises:
        ValueError: The model is not adapted, the format is unknown or does not fit
            the model or the path, or `path` exists and `overwrite` is false.
        RuntimeError: The second process failed; its message is given.
    """
    adapted_state(model)
    path = Path(path)
    _check_request(model, path, format, overwrite)
    _, backend = FORMATS[format]
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as place, merged(model):
        if backend in (None, keras.backend.backend()):
            _write(model, place, format)
        else:
            _write_elsewhere(model, place, format, backend)


def _check_request(
    model: keras.Model, path: Path, format: str, overwrite: bool
) -> None:
    if format not in FORMATS:
        raise ValueError(
            f"`format` must be one of {list(FORMATS)}. Received: format={format!r}."
        )
    if path.exists() and not overwrite:
        raise ValueError(
            f"'{path}' exists already. Choose another path, or pass overwrite=True."
        )
    if format == "keras" and path.suffix != ".keras":
        raise ValueError(f"The file's name must end in '.keras'. Received: '{path}'.")
    if format == "preset" and not hasattr(model, "save_to_preset"):
        raise ValueError(
            f"format='preset' needs a keras-hub model. Received: '{model.name}', a "
            f"{type(model).__name__}."
        )


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[str]:
    """Yield a place beside `path` that takes its name if all goes well."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        place = Path(folder) / path.name
        yield str(place)
        former = Path(folder) / "former"
        if path.exists():
            path.rename(former)
        place.rename(path)


def _write(model: keras.Model, path: str, format: str) -> None:
    writer, _ = FORMATS[format]
    writer(model, path)


def _write_elsewhere(
    model: keras.Model, path: str, format: str, backend: str | None
) -> None:
    """Write through a process that runs Keras on `backend`."""
    with tempfile.TemporaryDirectory(prefix="keras-randlora-") as folder:
        source = os.path.join(folder, "merged.keras")
        model.save(source)
        request = {
            "source": source,
            "path": path,
            "format": format,
            "modules": _defining_modules(model),
            "search_path": sys.path,
        }
        result = subprocess.run(
            [sys.executable, "-c", _WORKER, json.dumps(request)],
            env={**os.environ, "KERAS_BACKEND": str(backend)},
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        raise RuntimeError(
            f"Writing '{format}' takes a second process that runs Keras on {backend}, "
            f"and that process failed:\n{result.stderr.strip()[-2000:]}"
        )


_WORKER = """
import json, sys
request = json.loads(sys.argv[1])
sys.path[:] = request["search_path"]
from keras_randlora import export
export.run_request(request)
"""


def run_request(request: dict[str, Any]) -> None:
    """Write what another process asked for; see `_write_elsewhere`."""
    for module in request["modules"]:
        importlib.import_module(module)
    model = keras.saving.load_model(request["source"], compile=False)
    _write(model, request["path"], request["format"])


def _defining_modules(model: keras.Model) -> list[str]:
    """Return the modules that must be imported to load the model."""
    layers = model._flatten_layers()
    modules = {type(layer).__module__.split(".")[0] for layer in layers}
    return sorted(modules - {"keras", "__main__"})
