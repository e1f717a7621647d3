"""A TensorFlow SavedModel converted to ONNX, LiteRT and OpenVINO.

Runs where TensorFlow is the backend; see `export`. The converters are imported where
they are used, since none of them is needed by anything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

ONNX_OPSET = 18
_SIGNATURE = "serving_default"


def to_onnx(folder: str, path: str) -> None:
    """Convert the SavedModel in `folder` to the ONNX file `path`.

    Raises:
        RuntimeError: The model has operations that ONNX does not know.
    """
    import onnx
    import tf2onnx
    from tf2onnx import tf_loader

    graph, inputs, outputs, _, names = tf_loader.from_saved_model(
        folder,
        None,
        None,
        tag="serve",
        signatures=[_SIGNATURE],
        return_initialized_tables=True,
        return_tensors_to_rename=True,
    )
    model, _ = tf2onnx.convert.from_graph_def(
        graph,
        input_names=inputs,
        output_names=outputs,
        tensors_to_rename=names,
        opset=ONNX_OPSET,
        custom_op_handlers={"Erfc": (_convert_erfc, [])},
    )
    nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    unknown = {n.op_type for n in nodes if not onnx.defs.has(n.op_type, n.domain)}
    if unknown:
        raise RuntimeError(f"ONNX has no counterpart of {sorted(unknown)}.")
    onnx.save_model(model, path)


def _convert_erfc(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """Write `erfc(x)`, part of GELU, as `1 - erf(x)`: ONNX has no Erfc."""
    import numpy as np
    from tf2onnx import utils

    (x,), (result,) = node.input, node.output
    shape, dtype = graph.get_shape(result), graph.get_dtype(result)
    one = np.array(1, utils.map_onnx_to_numpy_type(dtype))
    graph.remove_node(name)
    erf = graph.make_node("Erf", [x], shapes=[shape], dtypes=[dtype])
    graph.make_node(
        "Sub",
        [graph.make_const(utils.make_name("one"), one).output[0], erf.output[0]],
        name=name,
        outputs=[result],
        shapes=[shape],
        dtypes=[dtype],
    )


def to_openvino(folder: str, path: str) -> None:
    """Convert the SavedModel in `folder` to the files `path` and `path`'s `.bin`.

    Weights keep their precision.
    """
    import openvino

    model = openvino.convert_model(folder)
    openvino.save_model(model, path, compress_to_fp16=False)


def to_litert(folder: str, path: str) -> None:
    """Convert the SavedModel in `folder` to the LiteRT file `path`.

    The file has LiteRT's own operations only, so that the plain runtime runs it. The
    SavedModel itself is changed: see `_expand_dims_for_new_axes`.

    Raises:
        RuntimeError: The model has operations that LiteRT does not know.
    """
    import tensorflow as tf

    _expand_dims_for_new_axes(Path(folder) / "saved_model.pb")
    converter = tf.lite.TFLiteConverter.from_saved_model(
        folder, signature_keys=[_SIGNATURE]
    )
    converter.experimental_enable_resource_variables = True
    try:
        content = converter.convert()
    except Exception as error:
        reason = str(error).split("Details:")[-1].strip()
        raise RuntimeError(f"LiteRT cannot run this model: {reason[-800:]}") from error
    Path(path).write_bytes(content)


def _expand_dims_for_new_axes(path: Path) -> None:
    """Write every `x[:, None]` in a SavedModel's graph as `expand_dims`.

    LiteRT has no slice that adds an axis to a tensor with two open dimensions, such as
    an attention mask of open batch and sequence.
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
    """Return the axis that a slice adds if it adds one and does nothing else."""
    import tensorflow as tf

    if node.op != "StridedSlice":
        return None
    added, ellipsis, shrunk, begin, end = (
        # Reading an attribute that is not there would create it.
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
