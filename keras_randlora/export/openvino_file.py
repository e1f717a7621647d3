"""OpenVINO files, converted from TensorFlow's graph without its weights.

The weights are parameters of the converted graph, then constants that share the memory
of the model's variables. A SavedModel in between would hold them several times.
"""

from __future__ import annotations

import re
import tempfile
from typing import Any

import keras
import numpy as np

from keras_randlora.export.stages import Say
from keras_randlora.export.stateless import StatelessModel
from keras_randlora.export.tensorflow_graph import TensorFlowGraph, trace
from keras_randlora.export.tensorflow_rewrites import multiply_int8_as_float32
from keras_randlora.tools import to_numpy


def write_openvino(model: keras.Model, path: str, say: Say) -> None:
    """Write `path` and its `.bin` file; weights keep their precision.

    Raises:
        RuntimeError: The model has operations that OpenVINO does not have, or
            TensorFlow cannot trace it.
    """
    import openvino

    say("tracing the model")
    function = StatelessModel(model)
    graph = trace(function)
    say("converting to OpenVINO")
    converted = _converted(graph)
    # Constants do not keep them alive.
    arrays = {name: to_numpy(weight) for name, weight in graph.weights.items()}
    inputs = _fill(converted, arrays, graph.inputs)
    results = {
        result.get_friendly_name(): result.input_value(0)
        for result in converted.get_results()
    }
    outputs = [results[name] for name in graph.outputs]
    named = [*zip(outputs, function.output_names, strict=True), *inputs]
    for tensor, _ in named:
        tensor.set_names(set())
    for tensor, name in named:
        tensor.add_names({name})
    say("writing the weights")
    parameters = [tensor.get_node() for tensor, _ in inputs]
    only = openvino.Model(outputs, parameters, model.name)
    openvino.serialize(only, path)


def _converted(graph: TensorFlowGraph) -> Any:
    """Return OpenVINO's form of a graph, with weights and inputs as parameters.

    It is read from a file: from objects of Python, OpenVINO knows no bfloat16.

    Raises:
        RuntimeError: The graph has operations that OpenVINO does not have.
    """
    import openvino
    import tensorflow as tf

    definition = graph.function.graph.as_graph_def()
    for part in (definition, *definition.library.function):
        multiply_int8_as_float32(part)
    with tempfile.TemporaryDirectory(prefix="keras-randlora-") as folder:
        file = tf.io.write_graph(definition, folder, "graph.pb", as_text=False)
        try:
            return openvino.convert_model(file)
        except Exception as error:
            raise RuntimeError(
                f"OpenVINO cannot run this model: {_reason(str(error))}"
            ) from error


def _reason(message: str) -> str:
    """Return the part of the converter's message that names the operations."""
    found = re.search(r"No conversion rule found for operations: [^\n]*", message)
    return found[0] if found else message[-800:]


def _fill(
    converted: Any, arrays: dict[str, np.ndarray], names: dict[str, str]
) -> list[tuple[Any, str]]:
    """Put the weights in place; return the inputs that remain, and our names."""
    inputs = []
    for parameter in converted.get_parameters():
        tensor = parameter.output(0)
        for name in tensor.get_names():
            if name in arrays:
                tensor.replace(_constant(arrays[name]).output(0))
            elif name in names:
                inputs.append((tensor, names[name]))
    return inputs


def _constant(array: np.ndarray) -> Any:
    """Return a constant in the memory of an array, which has to outlive it."""
    from openvino import Shape, Tensor, Type, op

    if array.dtype.name != "bfloat16":  # which is no type of NumPy's own
        return op.Constant(array, shared_memory=True)
    bits = Tensor(array.view("uint16"), Shape(array.shape), Type.bf16)
    return op.Constant(bits, shared_memory=True)
