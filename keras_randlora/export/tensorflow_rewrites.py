"""Rewrites of TensorFlow's graphs, for converters that lack an operation.

In the body of a function an input is `node:output:0`, in a graph it is `node`.
"""

from __future__ import annotations

from typing import Any


def expand_dims_for_new_axes(function: Any) -> None:
    """Replace every `x[:, None]` in a `FunctionDef` by `expand_dims`.

    LiteRT has no slice that adds axes to a tensor with two dynamic dimensions, such as
    an attention mask with dynamic batch and sequence.
    """
    constants = {n.name: n for n in function.node_def if n.op == "Const"}
    for node in list(function.node_def):
        if axes := _new_axes(node, constants):
            _make_expand_dims(function, node, axes)


def _new_axes(node: Any, constants: dict[str, Any]) -> list[int]:
    """Return the axes that a slice adds, in an order to add them, if that is all."""
    import tensorflow as tf

    if node.op != "StridedSlice":
        return []
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
    if strides is None or shrunk or not added:
        return []
    steps = tf.make_ndarray(strides.attr["value"].tensor)
    takes_all = added | ellipsis | (begin & end)
    if takes_all != 2 ** len(steps) - 1 or (steps != 1).any():
        return []
    axes = [axis for axis in range(len(steps)) if added >> axis & 1]
    # What comes after an ellipsis is counted from the end, the last axis first.
    after = [axis for axis in axes if 0 < ellipsis < 1 << axis]
    before = [axis for axis in axes if axis not in after]
    return before + [axis - len(steps) for axis in reversed(after)]


def _make_expand_dims(function: Any, node: Any, axes: list[int]) -> None:
    """Turn a node of a graph's function into `ExpandDims` of its first input."""
    import tensorflow as tf

    dtype = tf.int32.as_datatype_enum
    source, name = node.input[0], node.name
    node.op = "ExpandDims"
    for attribute in set(node.attr) - {"T", "_output_shapes"}:
        del node.attr[attribute]
    node.attr["Tdim"].type = dtype
    for number, axis in enumerate(axes):
        constant = function.node_def.add(name=f"{name}/axis_{number}", op="Const")
        constant.attr["dtype"].type = dtype
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(axis, tf.int32))
        one = node
        if number < len(axes) - 1:
            one = function.node_def.add(name=f"{name}/{number}", op="ExpandDims")
            one.attr["T"].CopyFrom(node.attr["T"])
            one.attr["Tdim"].type = dtype
        one.input[:] = [source, f"{constant.name}:output:0"]
        source = f"{one.name}:output:0"


def multiply_int8_as_float32(graph: Any) -> None:
    """Replace int8 products with int32 results in a `GraphDef` or a `FunctionDef`.

    Keras multiplies so on an int8 base. LiteRT has no such product, and that of
    OpenVINO 2026.4 ends at 127. The operands are exact in float32.
    """
    import tensorflow as tf

    int8, float32 = tf.int8.as_datatype_enum, tf.float32.as_datatype_enum
    function = hasattr(graph, "node_def")
    nodes = graph.node_def if function else graph.node

    def output(name: str, argument: str) -> str:
        return f"{name}:{argument}:0" if function else name

    renamed = {}
    for node in list(nodes):
        if node.op != "BatchMatMulV3" or node.attr["Ta"].type != int8:
            continue
        product = nodes.add(name=f"{node.name}/product", op="BatchMatMulV2")
        product.attr["T"].type = float32
        for name in {"adj_x", "adj_y"} & set(node.attr):
            product.attr[name].CopyFrom(node.attr[name])
        for side, operand in zip("xy", node.input, strict=True):
            cast = nodes.add(name=f"{node.name}/{side}", op="Cast", input=[operand])
            _set_types(cast, int8, float32)
            product.input.append(output(cast.name, "y"))
        renamed[output(node.name, "output")] = output(node.name, "y")
        result = node.attr["Tout"].type
        node.op = "Cast"
        node.input[:] = [output(product.name, "output")]
        node.attr.clear()
        _set_types(node, float32, result)
    for node in nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    if function:
        for key, name in graph.ret.items():
            graph.ret[key] = renamed.get(name, name)


def _set_types(cast: Any, source: int, result: int) -> None:
    """Set the two types of a `Cast`."""
    cast.attr["SrcT"].type = source
    cast.attr["DstT"].type = result
