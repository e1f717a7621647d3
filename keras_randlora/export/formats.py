"""The formats of artefacts, and how each is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras

from keras_randlora.export.onnx_file import write_onnx
from keras_randlora.export.saved_model import (
    write_litert,
    write_openvino,
    write_saved_model,
)
from keras_randlora.export.stages import Say
from keras_randlora.export.torch_program import write_torch
from keras_randlora.export.transformers_folder import write_transformers

_LARGEST_MESSAGE = 2**31 - 1


class Format(NamedTuple):
    """How an artefact is written.

    Attributes:
        write: Writes the merged model to a path, and says what it is at.
        backends: The backends that write it and the packages each needs for it, first
            the one that writes for all others; empty if every backend does.
        suffix: What the file's name ends in, `None` for a folder.
        beside: What the name of a second file ends in.
        method: The method of a keras-hub model that is called.
        max_bytes: Size of the weights that the file's format allows, in bytes.
    """

    write: Callable[[keras.Model, str, Say], Any]
    backends: Mapping[str, tuple[str, ...]] = {}
    suffix: str | None = None
    beside: str | None = None
    method: str | None = None
    max_bytes: float = math.inf

    @property
    def writer(self) -> str:
        """The backend that writes: this one if it can."""
        own = keras.backend.backend()
        return (
            own
            if own in self.backends or not self.backends
            else next(iter(self.backends))
        )


# TensorFlow keeps both the batch and the sequence dimension of a text model open in a
# SavedModel; jax2tf fails on two open dimensions, and Keras has no SavedModel from
# torch. What the converters make of it has the same names and the same dimensions.
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
    "torch": Format(write_torch, {"torch": ("torch",)}, suffix=".pt2"),
    "keras": Format(lambda model, path, say: model.save(path), suffix=".keras"),
    "preset": Format(
        lambda model, path, say: model.save_to_preset(path), method="save_to_preset"
    ),
    "transformers": Format(write_transformers, method="export_to_transformers"),
}
