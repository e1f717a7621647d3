"""An ONNX file, traced by TensorFlow or torch without its weights.

The weights are inputs of the traced graph. The graph is small for any model, and no
converter folds or copies a weight. The file gets each weight once, one by one.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_randlora.export.stages import Say
from keras_randlora.export.stateless import StatelessModel
from keras_randlora.export.tensorflow_graph import trace
from keras_randlora.tools import keras_internals, to_numpy

OPSET = 18
# Numbers of protobuf fields in `onnx.proto`.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9


class UntraceableError(RuntimeError):
    """This backend cannot trace the graph; another may."""


def write_onnx(model: keras.Model, path: str, say: Say) -> None:
    """Write an ONNX file with dynamic axes.

    Raises:
        RuntimeError: The model has operations that ONNX does not have.
        UntraceableError: torch's tracer fails, or fixes dynamic sizes in the graph.
    """
    import onnx

    say("tracing the model")
    function = StatelessModel(model)
    traced, weights = _TRACERS[keras.backend.backend()](function)
    nodes = [*traced.graph.node, *(n for f in traced.functions for n in f.node)]
    unknown = {n.op_type for n in nodes if not onnx.defs.has(n.op_type, n.domain)}
    if unknown:
        raise RuntimeError(f"ONNX has no counterpart of {sorted(unknown)}.")
    paths = dict(zip(weights, function.names, strict=False))
    outputs = [value.name for value in traced.graph.output]
    _rename(
        traced.graph, paths | dict(zip(outputs, function.output_names, strict=True))
    )
    _check(traced)
    used = {paths.get(name, name): weight for name, weight in weights.items()}
    inputs = [value for value in traced.graph.input if value.name not in used]
    del traced.graph.input[:]
    traced.graph.input.extend(inputs)
    read = set(_names_read(traced.graph))
    say("writing the weights")
    used = {name: weight for name, weight in used.items() if name in read}
    write_with_weights(traced, used, path)


def _check(model: Any) -> None:
    """Infer the shapes of a graph, all of whose weights are inputs.

    Raises:
        RuntimeError: The graph is none that a runtime would load.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise RuntimeError(
            f"ONNX refuses the converted graph: {str(error)[:500]}"
        ) from error


def write_with_weights(model: Any, weights: Mapping[str, Any], path: str) -> None:
    """Write a `ModelProto` and further initializers, with one in memory at a time.

    Args:
        model: The model without these initializers.
        weights: Arrays or variables, by their names in the graph.
        path: The file to write.
    """
    import onnx

    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    rest.ClearField("graph")
    graph = model.graph.SerializeToString()
    heads = []
    for name, weight in weights.items():
        array = to_numpy(weight)
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=kind)
        head = tensor.SerializeToString() + _field(_RAW_DATA, array.nbytes)
        heads.append(_field(_INITIALIZER, len(head) + array.nbytes) + head)
    size = (
        len(graph)
        + sum(map(len, heads))
        + sum(to_numpy(weight).nbytes for weight in weights.values())
    )
    with open(path, "wb") as file:
        file.write(rest.SerializeToString() + _field(_GRAPH, size) + graph)
        for head, weight in zip(heads, weights.values(), strict=True):
            file.write(head)
            file.write(to_numpy(weight).tobytes())


def _field(number: int, size: int) -> bytes:
    """Return the header of a protobuf field of `size` bytes."""
    prefix = bytearray()
    for value in (number << 3 | 2, size):
        while value > 127:
            prefix.append(value & 127 | 128)
            value >>= 7
        prefix.append(value)
    return bytes(prefix)


def _names_read(graph: Any) -> Iterator[str]:
    """Yield the names that nodes read, also in loops and branches."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _names_read(inner)
    yield from (value.name for value in graph.output)


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Rename values of a graph, also in its loops and branches."""
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)


# TensorFlow


def _trace_tensorflow(function: StatelessModel) -> tuple[Any, dict[str, Any]]:
    """Return the graph of tf2onnx, and the weights among its inputs."""
    import tensorflow as tf
    from tf2onnx import tf_loader

    traced = trace(function)
    ours = [f"weight_{i}" for i, _ in enumerate(function.variables)]
    renamed = dict(zip(traced.weights, ours, strict=False)) | traced.inputs
    taken = [tensor.name for tensor in traced.function.inputs]
    with tf.device("/cpu:0"):
        graph = tf_loader.from_function(traced.function, taken, traced.outputs)
    try:
        model = _converted(graph, taken, traced.outputs, renamed, careful=False)
    except Exception:
        model = _converted(graph, taken, traced.outputs, renamed, careful=True)
    weights = {renamed.get(name, name): w for name, w in traced.weights.items()}
    return model, weights


def _converted(
    graph: Any,
    inputs: list[str],
    outputs: list[str],
    renamed: dict[str, str],
    careful: bool,
) -> Any:
    """Return the ONNX model of a TensorFlow graph.

    tf2onnx has twelve optimizers and repeats all of them until none changes anything.
    Half of them are for operations that few models have. `careful` continues after a
    failing one, for which tf2onnx copies the graph before each.
    """
    import tensorflow as tf
    from tf2onnx import optimizer, tfonnx
    from tf2onnx.optimizer import (
        BackToBackOptimizer,
        ConstFoldOptimizer,
        EinsumOptimizer,
        IdentityOptimizer,
        MergeDuplicatedNodesOptimizer,
        TransposeOptimizer,
    )

    optimizers = {
        "optimize_transpose": TransposeOptimizer,
        "fold_constants": ConstFoldOptimizer,
        "merge_duplication": MergeDuplicatedNodesOptimizer,
        "remove_identity": IdentityOptimizer,
        "remove_back_to_back": BackToBackOptimizer,
        "einsum_optimizer": EinsumOptimizer,
    }
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph, name="")
        converted = tfonnx.process_tf_graph(
            imported,
            continue_on_error=True,
            opset=OPSET,
            custom_op_handlers={"Erfc": (_convert_erfc, [])},
            input_names=inputs,
            output_names=outputs,
            tensors_to_rename=renamed,
        )
        optimized = optimizer.optimize_graph(converted, careful, optimizers)
        return optimized.make_model("a Keras model")


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


# torch


def _trace_torch(function: StatelessModel) -> tuple[Any, dict[str, Any]]:
    """Return the graph of torch's tracer, and the weights among its inputs.

    The tracer treats a size that Python has read as a constant. Such a graph would be
    wrong at other sizes, so the model is traced at two sizes and compared.
    """
    first, second = (_trace_torch_at(function, number) for number in (0, 1))
    if first != second:
        raise UntraceableError(
            "torch made sizes of its example a part of the graph, which would be wrong "
            "at other sizes"
        )
    return first, {f"weight_{i}": v for i, v in enumerate(function.variables)}


def _trace_torch_at(function: StatelessModel, number: int) -> Any:
    """Return the graph traced with the example of this number."""
    import onnx
    import torch

    count = len(function.variables)

    class Module(torch.nn.Module):
        def forward(self, *arguments: Any) -> Any:
            return tuple(function.flat(arguments[:count], arguments[count:]))

    inputs = function.inputs
    weights = [variable.value.detach() for variable in function.variables]
    example = [
        torch.tensor(a, device=weights[0].device) for a in inputs.example(number)
    ]
    content = io.BytesIO()
    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        _layer_norm_of_open_sizes(),
        keras_internals.quiet_tracer(),
    ):
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                Module().eval(),
                (*weights, *example),
                content,
                input_names=[*(f"weight_{i}" for i in range(count)), *inputs.names],
                dynamic_axes=dict(zip(inputs.names, inputs.open_axes(), strict=True)),
                opset_version=OPSET,
                dynamo=False,
                verbose=False,
            )
        except Exception as error:
            reason = str(error).split("\n", 1)[0][:300]
            raise UntraceableError(f"torch cannot trace it ({reason})") from error
    model = onnx.load_model_from_string(content.getvalue())
    for node in model.graph.node:
        if node.op_type == "Transpose":
            _count_axes_from_the_front(node)
    return model


@contextlib.contextmanager
def _layer_norm_of_open_sizes() -> Iterator[None]:
    """Let torch translate a layer norm over axes of dynamic size.

    Their number equals that of the weight's axes, which is enough for ONNX.
    """
    import torch

    def translate(
        graph: Any, x: Any, shape: Any, weight: Any, bias: Any, *rest: Any
    ) -> Any:
        axes = weight.type().dim()
        epsilon = float(rest[0].node().t("value"))
        return graph.op(
            "LayerNormalization", x, weight, bias, axis_i=-axes, epsilon_f=epsilon
        )

    torch.onnx.register_custom_op_symbolic("aten::layer_norm", translate, OPSET)
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::layer_norm", OPSET)


def _count_axes_from_the_front(transpose: Any) -> None:
    """Replace torch's negative axes, which ONNX does not allow."""
    for attribute in transpose.attribute:
        axes = [axis % len(attribute.ints) for axis in attribute.ints]
        attribute.ints[:] = axes


_TRACERS = {"tensorflow": _trace_tensorflow, "torch": _trace_torch}
