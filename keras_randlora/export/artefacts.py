"""Export of the merged model, for use without Keras or without this package.

If this backend cannot write a format, a second process writes it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

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
from keras_randlora.export.formats import FORMATS
from keras_randlora.export.gathering import gathered
from keras_randlora.export.onnx_file import UntraceableError
from keras_randlora.export.second_process import (
    require_importable_classes,
    write_elsewhere,
)
from keras_randlora.export.stages import Say, speaker
from keras_randlora.tools import (
    Hosts,
    bytes_of,
    hosts_of,
    keras_internals,
    local_path,
    replacing,
    to_numpy,
)


def export_merged(
    model: keras.Model,
    path: str | os.PathLike[str],
    format: str = "tf_saved_model",
    *,
    overwrite: bool = False,
    verbose: bool = True,
) -> None:
    """Write the model with merged kernels, as a plain model.

    The adapted model in memory is unchanged. The written model is not compiled, and has
    the `trainable` flags from before the adaptation. TensorFlow writes
    `"tf_saved_model"`, `"onnx"`, `"litert"` and `"openvino"`, torch writes `"onnx"` and
    `"torch"`; on another backend a second process does. These formats have named
    inputs, and dynamic dimensions of the model (batch, sequence) stay dynamic.

    | format | written to | runs in |
    |---|---|---|
    | `"tf_saved_model"` | a folder | TensorFlow |
    | `"onnx"` | `.onnx` | ONNX Runtime |
    | `"litert"` | `.tflite`, with LiteRT's own operations only | `ai-edge-litert` |
    | `"openvino"` | `.xml`, and a `.bin` next to it | OpenVINO |
    | `"torch"` | `.pt2`, a `torch.export` program | torch |
    | `"keras"` | `.keras` | Keras, without this package |
    | `"preset"` | a folder | keras-hub, without this package |
    | `"transformers"` | a folder | transformers, for families keras-hub can write |

    OpenVINO computes in bfloat16 on processors that support it: for float32 compile
    with `{"INFERENCE_PRECISION_HINT": "f32"}`. In `.onnx` and `.tflite` files weights
    are limited to 2 GB.

    Of a model over several hosts every process calls. Each kernel is gathered once, on
    the host that writes, which needs memory for the whole model.

    Args:
        model: An adapted model.
        path: The file or folder, as in the table.
        format: A format of the table.
        overwrite: Whether to replace what is at `path`.
        verbose: Whether to print a line for each stage.

    Raises:
        ValueError: The model is not adapted, the format is unknown or does not fit
            the model or the path, `path` exists and `overwrite` is false, or a second
            process could not load the model. Nothing is written.
        ModuleNotFoundError: A package is missing; the message says how to install it.
        OSError: `path` cannot be written, or is a folder with other files.
        RuntimeError: The conversion failed; its message is given. What was at `path` is
            still there. Or not all processes that hold the model called.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> kr.export_merged(model, "model.keras", format="keras")
    >>> keras.saving.load_model("model.keras").count_params()
    28
    """
    state = adapted_state(model)
    path = local_path(path)
    hosts = hosts_of(model.variables)
    doing = f"export_merged to '{path}'"
    with hosts.together(doing):  # what one process finds at the path is known to all
        warn_of_zero_update(model, state.selection.adapted)
        _check_request(model, path, format, overwrite or not hosts.writes)
        backend = FORMATS[format].writer
        if backend != keras.backend.backend():
            require_importable_classes(model, format, backend)
    with (
        hosts.together(doing),
        _place(path, hosts) as place,
        merged(model),
        _plain(model, state),
        complete_config(model),
        gathered(model, hosts),
    ):
        if hosts.writes:
            _write(model, place, format, speaker(format, verbose))


@contextlib.contextmanager
def _place(path: Path, hosts: Hosts) -> Iterator[str]:
    """Yield where the process that writes does so, see `replacing`."""
    if not hosts.writes:
        yield ""
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as place:
        yield place


def _write(model: keras.Model, path: str, format: str, say: Say) -> None:
    """Write in this process if its backend can, else in a second process."""
    kind = FORMATS[format]
    own, backend = keras.backend.backend(), kind.writer
    if backend == own:
        try:
            kind.write(model, path, say)
            return
        except UntraceableError as error:
            others = [
                other
                for other, packages in kind.backends.items()
                if other != own and not _missing(packages)
            ]
            if not others:
                raise
            say(str(error))
            backend = others[0]
            require_importable_classes(model, format, backend)
    write_elsewhere(model, path, format, backend, say)


def _missing(packages: tuple[str, ...]) -> list[str]:
    """Return the packages that are not installed."""
    return [name for name in packages if not importlib.util.find_spec(name)]


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
    if keras_internals.version_of_keras() < kind.since:
        first = ".".join(map(str, kind.since))
        raise ValueError(
            f"format='{format}' needs Keras {first}: layers of earlier versions cannot "
            f"be traced. This is Keras {keras.__version__}. Use another of "
            f"{list(FORMATS)}."
        )
    if format == "preset":
        _require_preset_of(model)
    if format == "transformers":
        _require_known_to_transformers(model)
    missing = _missing(kind.backends.get(kind.writer, ()))
    if missing:
        backend = missing[0] if missing[0] in kind.backends else None
        extra = backend if missing == [backend] else "export"
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


def _require_preset_of(model: keras.Model) -> None:
    import keras_hub

    alone = getattr(model, "preprocessor", model) is None
    if alone and keras_internals.version_numbers(keras_hub.__version__) < (0, 30):
        raise ValueError(
            f"keras-hub {keras_hub.__version__} cannot write a preset of "
            f"'{model.name}', a task without a preprocessor; keras-hub 0.30 can. Give "
            "it a preprocessor, or use format='keras'."
        )


def _require_known_to_transformers(model: keras.Model) -> None:
    import keras_hub
    from keras_hub.src.utils.transformers.export.hf_exporter import MODEL_EXPORTERS

    backbone = type(backbone_of(model)).__name__
    if backbone not in MODEL_EXPORTERS:
        raise ValueError(
            f"keras-hub {keras_hub.__version__} cannot write a {backbone} for "
            f"transformers, only {', '.join(MODEL_EXPORTERS)}. Use format='preset'."
        )
    quantized = [
        f"'{layer.name}' ({layer.quantization_mode})"
        for layer in keras_internals.layers_below(model)
        if getattr(layer, "quantization_mode", None) is not None
    ]
    if quantized:
        raise ValueError(
            f"Model '{model.name}' has {len(quantized)} quantized layers, first "
            f"{quantized[0]}; keras-hub would write their integers as weights. Load "
            "the adapter into a model in floating point and export that, or use "
            "format='preset'."
        )


@contextlib.contextmanager
def _plain(model: keras.Model, state: AdaptedState) -> Iterator[None]:
    """Restore the former `trainable` flags, and save no training state."""
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
    """Return an optimizer without state that is saved like `optimizer`.

    A keras-hub task compiles itself when it is loaded, and needs that in the file.
    """
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        return keras.optimizers.LossScaleOptimizer(_untrained(inner))
    if not hasattr(optimizer, "learning_rate"):  # a `MultiOptimizer` has several
        return keras.optimizers.SGD()
    return keras.optimizers.SGD(float(to_numpy(optimizer.learning_rate)))
