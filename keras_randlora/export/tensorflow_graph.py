"""A stateless model as TensorFlow traces it, for converters that read its graph."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_randlora.export.stateless import StatelessModel


class TensorFlowGraph(NamedTuple):
    """A traced model, whose weights are inputs of the graph.

    Attributes:
        function: The concrete function.
        weights: The variable behind each input of the graph, and the constants that
            Keras computed outside of it, by the names of their tensors.
        inputs: Our name for each of the other inputs, by the names of their tensors.
        outputs: The names of the tensors of the outputs.
    """

    function: Any
    weights: dict[str, Any]
    inputs: dict[str, str]
    outputs: list[str]


def trace(model: StatelessModel) -> TensorFlowGraph:
    """Trace a model with TensorFlow; its dynamic dimensions stay dynamic."""
    import tensorflow as tf

    inputs = zip(model.inputs.specs, model.inputs.names, strict=True)
    signature = (
        [
            tf.TensorSpec(variable.shape, variable.dtype, f"weight_{index}")
            for index, variable in enumerate(model.variables)
        ],
        [tf.TensorSpec(spec.shape, spec.dtype, name) for spec, name in inputs],
    )
    function = tf.function(
        model.flat, input_signature=signature, autograph=False
    ).get_concrete_function(*signature)
    names = [tensor.name for tensor in function.inputs]
    first = len(model.variables)
    last = first + len(model.inputs.names)
    weights = dict(zip(names[:first], model.variables, strict=True))
    constants = dict(zip(names[last:], function.captured_inputs, strict=True))
    return TensorFlowGraph(
        function,
        weights | constants,
        dict(zip(names[first:last], model.inputs.names, strict=True)),
        [tensor.name for tensor in function.outputs],
    )
