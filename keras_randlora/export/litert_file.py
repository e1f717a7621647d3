"""LiteRT files, converted from a SavedModel."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import keras

from keras_randlora.export.saved_model import write_saved_model
from keras_randlora.export.stages import Say
from keras_randlora.export.tensorflow_rewrites import (
    expand_dims_for_new_axes,
    multiply_int8_as_float32,
)


def write_litert(model: keras.Model, path: str, say: Say) -> None:
    """Write a LiteRT file.

    The file has LiteRT's own operations only, so the plain runtime runs it.

    Raises:
        RuntimeError: The model has operations that LiteRT does not have.
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix="keras-randlora-") as folder:
        write_saved_model(model, folder, say)
        say("converting to LiteRT")
        _rewrite(Path(folder) / "saved_model.pb")
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        converter.experimental_enable_resource_variables = True
        try:
            content = converter.convert()
        except Exception as error:
            raise RuntimeError(
                f"LiteRT cannot run this model: {_reason(str(error))}"
            ) from error
    say("writing the weights")
    Path(path).write_bytes(content)


def _reason(message: str) -> str:
    """Return the part of a converter's message that names the operations."""
    for pattern in (r"Details:\s*(.+?)\n\n", r"('tfl?\.\w+' op [^\n]*)"):
        if found := re.search(pattern, message, re.DOTALL):
            return found[1][:800]
    return message[-800:]


def _rewrite(path: Path) -> None:
    """Replace what LiteRT lacks in the functions of a SavedModel."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for meta_graph in saved_model.meta_graphs:
        for function in meta_graph.graph_def.library.function:
            expand_dims_for_new_axes(function)
            multiply_int8_as_float32(function)
    path.write_bytes(saved_model.SerializeToString())
