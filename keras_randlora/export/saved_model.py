"""TensorFlow SavedModel, and conversions from one: LiteRT and OpenVINO.

It runs with TensorFlow as the backend; see `export`. The converters are imported where
they are used, since nothing else needs them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_randlora.export.stages import Say
from keras_randlora.tools import keras_internals

_SIGNATURE = "serving_default"


def write_saved_model(model: keras.Model, path: str, say: Say) -> None:
    """Write the model with one function, `serve`, the default signature."""
    say("tracing the model")
    archive = keras.export.ExportArchive()
    signature = keras_internals.input_signature(model)
    archive.track_and_add_endpoint("serve", model, signature)
    # Keras lists its own variables there and TensorFlow's in another list, so each of
    # them would be written twice.
    for name in ("variables", "trainable_variables", "non_trainable_variables"):
        collection = [variable.value for variable in getattr(model, name)]
        archive.add_variable_collection(name, collection)
    say("writing the SavedModel")
    archive.write_out(path, verbose=False)


@contextlib.contextmanager
def _temporary_saved_model(model: keras.Model, say: Say) -> Iterator[str]:
    """Yield the folder of a SavedModel."""
    with tempfile.TemporaryDirectory(prefix="keras-randlora-") as folder:
        write_saved_model(model, folder, say)
        yield folder


def write_openvino(model: keras.Model, path: str, say: Say) -> None:
    """Write `path` and its `.bin` file; weights keep their precision."""
    import openvino

    with _temporary_saved_model(model, say) as folder:
        say("converting to OpenVINO")
        converted = openvino.convert_model(folder)
        say("writing the weights")
        openvino.save_model(converted, path, compress_to_fp16=False)


def write_litert(model: keras.Model, path: str, say: Say) -> None:
    """Write a LiteRT file.

    The file has LiteRT's own operations only, so the plain runtime runs it.

    Raises:
        RuntimeError: The model has operations that LiteRT does not have.
    """
    import tensorflow as tf

    with _temporary_saved_model(model, say) as folder:
        say("converting to LiteRT")
        _expand_dims_for_new_axes(Path(folder) / "saved_model.pb")
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=[_SIGNATURE]
        )
        converter.experimental_enable_resource_variables = True
        try:
            content = converter.convert()
        except Exception as error:
            reason = str(error).split("Details:")[-1].strip()
            raise RuntimeError(
                f"LiteRT cannot run this model: {reason[-800:]}"
            ) from error
    say("writing the weights")
    Path(path).write_bytes(content)


def _expand_dims_for_new_axes(path: Path) -> None:
    """Replace every `x[:, None]` in a SavedModel's graph by `expand_dims`.

    LiteRT has no slice that adds an axis to a tensor with two dynamic dimensions, such
    as an attention mask with dynamic batch and sequence.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    saved_model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for meta_graph in saved_model.meta_graphs:
        for function in meta_graph.graph_def.library.function:
            constants = {n.name: n for n in function.node_def if n.op == "Const"}
            for node in list(function.node_def):
                axis = _new_axis(node, constants)
                if axis is not None:
                    _make_expand_dims(function, node, axis)
    path.write_bytes(saved_model.SerializeToString())


def _new_axis(node: Any, constants: dict[str, Any]) -> int | None:
    """Return the axis that a slice adds, if it does nothing else."""
    import tensorflow as tf

    if node.op != "StridedSlice":
        return None
    added, ellipsis, shrunk, begin, end = (
        # Reading a missing attribute would create it.
        node.attr[name].i if name in node.attr else 0
        for name in (
            "new_axis_mask",
            "ellipsis_mask",
            "shrink_axis_mask",
            "begin_mask",
            "end_mask",
        )
    )
    strides = constants.get(node.input[3].split(":")[0])
    if strides is None or shrunk or added.bit_count() != 1:
        return None
    steps = tf.make_ndarray(strides.attr["value"].tensor)
    takes_all = added | ellipsis | (begin & end)
    if takes_all != 2 ** len(steps) - 1 or (steps != 1).any():
        return None
    axis = added.bit_length() - 1
    return axis - len(steps) if 0 < ellipsis < added else axis


def _make_expand_dims(function: Any, node: Any, axis: int) -> None:
    """Turn a node of a graph's function into an `ExpandDims` of its first input."""
    import tensorflow as tf

    dtype = tf.int32.as_datatype_enum
    constant = function.node_def.add(name=f"{node.name}/axis", op="Const")
    constant.attr["dtype"].type = dtype
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(axis, tf.int32))
    node.op = "ExpandDims"
    node.input[:] = [node.input[0], f"{constant.name}:output:0"]
    for name in set(node.attr) - {"T", "_output_shapes"}:
        del node.attr[name]
    node.attr["Tdim"].type = dtype
