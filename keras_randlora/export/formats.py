"""Table of the export formats and their writers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras

from keras_randlora.export.litert_file import write_litert
from keras_randlora.export.onnx_file import write_onnx
from keras_randlora.export.openvino_file import write_openvino
from keras_randlora.export.saved_model import write_saved_model
from keras_randlora.export.stages import Say
from keras_randlora.export.torch_program import write_torch
from keras_randlora.export.transformers_folder import write_transformers

_LARGEST_MESSAGE = 2**31 - 1


class Format(NamedTuple):
    """An export format.

    Attributes:
        write: Writes the merged model to a path, and reports its stages.
        backends: The backends that write it and the packages each needs, first the one
            that writes for all others; empty if every backend does.
        suffix: Suffix of the file, `None` for a folder.
        beside: Suffix of a second file.
        method: The method of a keras-hub model that is called.
        max_bytes: Largest size of the weights in the format, in bytes.
        since: The first Keras whose layers the format's tracer can trace.
    """

    write: Callable[[keras.Model, str, Say], Any]
    backends: Mapping[str, tuple[str, ...]] = {}
    suffix: str | None = None
    beside: str | None = None
    method: str | None = None
    max_bytes: float = math.inf
    since: tuple[int, int] = (3, 12)

    @property
    def writer(self) -> str:
        """The backend that writes: this one if it can."""
        own = keras.backend.backend()
        return (
            own
            if own in self.backends or not self.backends
            else next(iter(self.backends))
        )


# TensorFlow keeps the batch and the sequence dimension of a text model dynamic in a
# SavedModel; jax2tf fails on two dynamic dimensions, and Keras has no SavedModel from
# torch. The converters keep names and dimensions.
FORMATS: dict[str, Format] = {
    "tf_saved_model": Format(write_saved_model, {"tensorflow": ("tensorflow",)}),
    "onnx": Format(
        write_onnx,
        {
            "tensorflow": ("tensorflow", "onnx", "tf2onnx"),
            "torch": ("torch", "onnx"),
        },
        suffix=".onnx",
        max_bytes=_LARGEST_MESSAGE,
    ),
    "litert": Format(
        write_litert,
        {"tensorflow": ("tensorflow",)},
        suffix=".tflite",
        max_bytes=_LARGEST_MESSAGE,
    ),
    "openvino": Format(
        write_openvino,
        {"tensorflow": ("tensorflow", "openvino")},
        suffix=".xml",
        beside=".bin",
    ),
    "torch": Format(write_torch, {"torch": ("torch",)}, suffix=".pt2", since=(3, 15)),
    "keras": Format(lambda model, path, say: model.save(path), suffix=".keras"),
    "preset": Format(
        lambda model, path, say: model.save_to_preset(path), method="save_to_preset"
    ),
    "transformers": Format(write_transformers, method="export_to_transformers"),
}
