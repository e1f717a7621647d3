"""Export by a second process, on the backend that a format needs.

The model is passed in a temporary `.keras` file.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_randlora.export.formats import FORMATS
from keras_randlora.export.stages import Say
from keras_randlora.tools import keras_internals


def require_importable_classes(model: keras.Model, format: str, backend: str) -> None:
    """Refuse classes that a second process on `backend` could not import."""
    for layer in keras_internals.layers_below(model):
        kind = type(layer)
        if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
            raise ValueError(
                f"format='{format}' is written by a second process, on {backend}, "
                f"which cannot import the class {kind.__qualname__} of layer "
                f"'{layer.path}' from '{kind.__module__}'. Move the class into a "
                f"module of its own, or run on KERAS_BACKEND={backend}."
            )


def write_elsewhere(
    model: keras.Model, path: str, format: str, backend: str, say: Say
) -> None:
    """Write in a process that runs Keras on `backend`.

    Raises:
        RuntimeError: That process failed; its message is given.
    """
    say(f"in a second process, which runs Keras on {backend}")
    with tempfile.TemporaryDirectory(prefix="keras-randlora-") as folder:
        source = os.path.join(folder, "merged.keras")
        failure = Path(folder) / "failure.txt"
        with _without_preprocessors(model):
            model.save(source)
        request = {
            "source": source,
            "path": path,
            "format": format,
            "modules": _defining_modules(model),
            "search_path": sys.path,
            "failure": str(failure),
        }
        environment = {
            **os.environ,
            "KERAS_BACKEND": backend,
            # This process may hold all memory of the accelerator.
            "CUDA_VISIBLE_DEVICES": "-1",
            # What the process leaves there goes with the folder.
            "TMPDIR": folder,
        }
        status, errors = _run(request, environment, say)
        if status:
            reason = failure.read_text() if failure.exists() else errors
            raise RuntimeError(
                f"Writing '{format}' takes a second process that runs Keras on "
                f"{backend}, and that process failed (exit status "
                f"{status}):\n{reason.strip()[-2000:]}"
            )


def _run(
    request: dict[str, Any], environment: dict[str, str], say: Say
) -> tuple[int, str]:
    """Run the process, print its stages, and return its exit status and stderr."""
    with (
        open(f"{request['failure']}.stderr", "w+") as errors,
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, json.dumps(request)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(_STAGE):
                    say(line.removeprefix(_STAGE).strip())
            status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        errors.seek(0)
        return status, errors.read()


# Prefix of the lines in which the second process reports its stages.
_STAGE = "keras-randlora stage: "
_WORKER = """
import json, sys
request = json.loads(sys.argv[1])
sys.path[:] = request["search_path"]
from keras_randlora import export
sys.exit(export.run_request(request))
"""


def run_request(request: dict[str, Any]) -> int:
    """Run the request of another process, see `write_elsewhere`.

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
        os.remove(request["source"])
        FORMATS[request["format"]].write(
            model, request["path"], lambda stage: print(_STAGE + stage, flush=True)
        )
    except Exception:
        Path(request["failure"]).write_text(traceback.format_exc())
        return 1
    return 0


@contextlib.contextmanager
def _without_preprocessors(model: keras.Model) -> Iterator[None]:
    """Leave the preprocessors of keras-hub tasks out of files saved in the block.

    An exported model takes their outputs. A second process could not load tokenizers
    that were not loaded from keras-hub's own files.
    """
    with contextlib.ExitStack() as undo:
        layers = {id(model): model}
        layers.update({id(x): x for x in keras_internals.layers_below(model)})
        for layer in layers.values():
            if getattr(layer, "preprocessor", None) is not None:
                config = {**layer.get_config(), "preprocessor": None}
                object.__setattr__(layer, "get_config", lambda it=config: dict(it))
                undo.callback(object.__delattr__, layer, "get_config")
        yield


def _defining_modules(model: keras.Model) -> list[str]:
    """Return the modules that must be imported to load the model."""
    modules = {type(layer).__module__ for layer in keras_internals.layers_below(model)}
    return sorted(m for m in modules if m.split(".")[0] != "keras")
