"""Artefacts of the merged model, for people who have neither Keras nor this package.

A format that only one backend writes is written there: a model that runs on another
one travels through a temporary `.keras` file to a process that has the right backend.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras

from keras_randlora.adapt import (
    AdaptedState,
    TrainableFlag,
    adapted_state,
    backbone_of,
    complete_config,
    merged,
    restore_flags,
    summary,
    warn_of_zero_update,
)
from keras_randlora.export.saved_model import to_litert, to_onnx, to_openvino
from keras_randlora.tools import (
    bytes_of,
    keras_internals,
    local_path,
    replacing,
    to_numpy,
)

_LARGEST_MESSAGE = 2**31 - 1


class Format(NamedTuple):
    """How an artefact is written.

    Attributes:
        write: Writes the merged model to a path.
        backend: The one backend that writes it, `None` if each of them does.
        suffix: What the file's name ends in, `None` for a folder.
        beside: What the name of a second file ends in.
        packages: What must be installed.
        method: The method of a keras-hub model that is called.
        max_bytes: Size of the weights that the file's format allows, in bytes.
    """

    write: Callable[[keras.Model, str], Any]
    backend: str | None = None
    suffix: str | None = None
    beside: str | None = None
    packages: tuple[str, ...] = ()
    method: str | None = None
    max_bytes: float = math.inf


def _saved_model(model: keras.Model, path: str) -> None:
    model.export(path, format="tf_saved_model", verbose=False)


def _through_saved_model(
    convert: Callable[[str, str], None],
) -> Callable[[keras.Model, str], None]:
    """Return a writer that converts a temporary SavedModel."""

    def write(model: keras.Model, path: str) -> None:
        with tempfile.TemporaryDirectory(prefix="keras-randlora-") as folder:
            _saved_model(model, folder)
            convert(folder, path)

    return write


# TensorFlow keeps both the batch and the sequence dimension of a text model open in a
# SavedModel; jax2tf fails on two open dimensions, and Keras has no SavedModel from
# torch. What the converters make of it has the same names and the same dimensions.
FORMATS: dict[str, Format] = {
    "tf_saved_model": Format(_saved_model, "tensorflow", packages=("tensorflow",)),
    "onnx": Format(
        _through_saved_model(to_onnx),
        "tensorflow",
        suffix=".onnx",
        packages=("tensorflow", "onnx", "tf2onnx"),
        max_bytes=_LARGEST_MESSAGE,
    ),
    "litert": Format(
        _through_saved_model(to_litert),
        "tensorflow",
        suffix=".tflite",
        packages=("tensorflow",),
        max_bytes=_LARGEST_MESSAGE,
    ),
    "openvino": Format(
        _through_saved_model(to_openvino),
        "tensorflow",
        suffix=".xml",
        beside=".bin",
        packages=("tensorflow", "openvino"),
    ),
    "keras": Format(lambda model, path: model.save(path), suffix=".keras"),
    "preset": Format(
        lambda model, path: model.save_to_preset(path), method="save_to_preset"
    ),
    "transformers": Format(
        lambda model, path: model.export_to_transformers(path),
        method="export_to_transformers",
    ),
}


def export_merged(
    model: keras.Model,
    path: str | os.PathLike[str],
    format: str = "tf_saved_model",
    *,
    overwrite: bool = False,
    verbose: bool = True,
) -> None:
    """Write the model with merged kernels, without a trace of the adapter.

    The adapted model in memory is unchanged. What is written is not compiled, and as
    trainable as it was before the adaptation. `"tf_saved_model"`, `"onnx"`, `"litert"`
    and `"openvino"` are written by TensorFlow: on JAX and torch in a second process,
    and a printed line says so. They have named inputs, and dimensions that are open
    in the model (batch, sequence) stay open.

    | format | written to | runs in |
    |---|---|---|
    | `"tf_saved_model"` | a folder | TensorFlow |
    | `"onnx"` | `.onnx` | ONNX Runtime |
    | `"litert"` | `.tflite`, with LiteRT's own operations only | `ai-edge-litert` |
    | `"openvino"` | `.xml`, and a `.bin` beside it | OpenVINO |
    | `"keras"` | `.keras` | Keras, without this package |
    | `"preset"` | a folder | keras-hub, without this package |
    | `"transformers"` | a folder | transformers, for families keras-hub can write |

    OpenVINO computes in bfloat16 on processors that have it: for the digits of float32
    compile with `{"INFERENCE_PRECISION_HINT": "f32"}`. In `.onnx` and `.tflite` files
    weights are limited to 2 GB.

    Args:
        model: An adapted model.
        path: Where to write, as the table says.
        format: A format of the table.
        overwrite: Whether to replace what stands at `path`.
        verbose: Whether to say that a second process writes.

    Raises:
        ValueError: The model is not adapted, the format is unknown or does not fit
            the model or the path, `path` exists and `overwrite` is false, or a second
            process could not load the model. Nothing is written.
        ModuleNotFoundError: A package is missing; the message says how to install it.
        OSError: The place cannot be written to, or is a folder with other files.
        RuntimeError: The conversion failed; its message is given. What stood at `path`
            is still there.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> kr.export_merged(model, "model.keras", format="keras")
    >>> keras.saving.load_model("model.keras").count_params()
    28
    """
    state = adapted_state(model)
    warn_of_zero_update(model, state.selection.adapted)
    path = local_path(path)
    _check_request(model, path, format, overwrite)
    kind = FORMATS[format]
    elsewhere = kind.backend not in (None, keras.backend.backend())
    if elsewhere:
        _require_importable_classes(model, format)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as place,
        merged(model),
        _plain(model, state),
        complete_config(model),
    ):
        if elsewhere:
            _write_elsewhere(model, place, format, verbose)
        else:
            kind.write(model, place)


def _check_request(
    model: keras.Model, path: Path, format: str, overwrite: bool
) -> None:
    if format not in FORMATS:
        raise ValueError(
            f"`format` must be one of {list(FORMATS)}. Received: format={format!r}."
        )
    kind = FORMATS[format]
    if kind.suffix is not None and path.suffix != kind.suffix:
        raise ValueError(
            f"The file's name must end in '{kind.suffix}'. Received: '{path}'."
        )
    places = [path, *([path.with_suffix(kind.beside)] if kind.beside else [])]
    taken = [place for place in places if place.exists()]
    if taken and not overwrite:
        raise ValueError(
            f"'{taken[0]}' exists already. Choose another path, or pass overwrite=True."
        )
    if kind.method is not None and not hasattr(model, kind.method):
        raise ValueError(
            f"format='{format}' calls `{kind.method}`, which keras-hub does not give "
            f"to this model. Received: '{model.name}', a {type(model).__name__}."
        )
    if format == "transformers":
        _require_known_to_transformers(model)
    missing = [name for name in kind.packages if not importlib.util.find_spec(name)]
    if missing:
        extra = "tensorflow" if missing == ["tensorflow"] else "export"
        raise ModuleNotFoundError(
            f"format='{format}' needs {' and '.join(missing)}: "
            f"pip install 'keras-randlora[{extra}]'."
        )
    size = sum(map(bytes_of, model.weights)) - summary(model).basis_bytes
    if size > kind.max_bytes:
        raise ValueError(
            f"format='{format}' is limited to 2 GB of weights; model '{model.name}' "
            f"has {size / 1e9:.1f} GB. Use 'openvino' or 'tf_saved_model'."
        )


def _require_known_to_transformers(model: keras.Model) -> None:
    from keras_hub.src.utils.transformers.export.hf_exporter import MODEL_EXPORTERS

    backbone = type(backbone_of(model)).__name__
    if backbone not in MODEL_EXPORTERS:
        raise ValueError(
            f"keras-hub cannot write a {backbone} for transformers, only "
            f"{', '.join(MODEL_EXPORTERS)}. Use format='preset'."
        )


def _require_importable_classes(model: keras.Model, format: str) -> None:
    """Refuse classes that a second process could not find."""
    for layer in keras_internals.layers_below(model):
        kind = type(layer)
        if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
            backend = FORMATS[format].backend
            raise ValueError(
                f"format='{format}' is written by a second process, on {backend}, "
                f"which cannot import the class {kind.__qualname__} of layer "
                f"'{layer.path}' from '{kind.__module__}'. Move the class into a "
                f"module of its own, or run on KERAS_BACKEND={backend}."
            )


@contextlib.contextmanager
def _plain(model: keras.Model, state: AdaptedState) -> Iterator[None]:
    """Thaw what was trainable before, and let nothing of the training be saved."""
    flags = [TrainableFlag.of(flag.layer) for flag in state.was_trainable]
    with contextlib.ExitStack() as undo:
        undo.callback(restore_flags, flags)
        for name in ("optimizer", "compiled"):
            if hasattr(model, name):
                undo.callback(setattr, model, name, getattr(model, name))
        restore_flags(state.was_trainable)
        if getattr(model, "optimizer", None) is not None:
            model.optimizer = _untrained(model.optimizer)
        model.compiled = False
        yield


def _untrained(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return an optimizer without state that is filed as `optimizer` would be.

    A keras-hub task compiles itself when it is loaded, and looks for that in the file.
    """
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        return keras.optimizers.LossScaleOptimizer(_untrained(inner))
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return keras.optimizers.SGD()
    return keras.optimizers.SGD(float(to_numpy(optimizer.learning_rate)))


def _write_elsewhere(model: keras.Model, path: str, format: str, verbose: bool) -> None:
    """Write through a process that runs Keras on the format's backend."""
    backend = str(FORMATS[format].backend)
    if verbose:
        print(
            f"Writing '{format}' in a second process, which runs Keras on {backend} …",
            flush=True,
        )
    with tempfile.TemporaryDirectory(prefix="keras-randlora-") as folder:
        source = os.path.join(folder, "merged.keras")
        failure = Path(folder) / "failure.txt"
        model.save(source)
        request = {
            "source": source,
            "path": path,
            "format": format,
            "modules": _defining_modules(model),
            "search_path": sys.path,
            "failure": str(failure),
        }
        result = subprocess.run(
            [sys.executable, "-c", _WORKER, json.dumps(request)],
            # This process may hold all memory of the accelerator.
            env={**os.environ, "KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "-1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            reason = failure.read_text() if failure.exists() else result.stderr
            raise RuntimeError(
                f"Writing '{format}' takes a second process that runs Keras on "
                f"{backend}, and that process failed (exit status "
                f"{result.returncode}):\n{reason.strip()[-2000:]}"
            )


_WORKER = """
import json, sys
request = json.loads(sys.argv[1])
sys.path[:] = request["search_path"]
from keras_randlora import export
sys.exit(export.run_request(request))
"""


def run_request(request: dict[str, Any]) -> int:
    """Write what another process asked for, see `_write_elsewhere`.

    Returns:
        The exit status: 0, or 1 with a traceback in the file `request["failure"]`.
    """
    try:
        for module in request["modules"]:
            importlib.import_module(module)
        # The other process has just written this file, so it can be trusted.
        model = keras.saving.load_model(
            request["source"], compile=False, safe_mode=False
        )
        FORMATS[request["format"]].write(model, request["path"])
    except Exception:
        Path(request["failure"]).write_text(traceback.format_exc())
        return 1
    return 0


def _defining_modules(model: keras.Model) -> list[str]:
    """Return the modules that must be imported to load the model."""
    modules = {type(layer).__module__ for layer in keras_internals.layers_below(model)}
    return sorted(m for m in modules if m.split(".")[0] != "keras")
