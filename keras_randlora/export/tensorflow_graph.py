"""A stateless model as TensorFlow traces it, for converters that read its graph."""

from __future__ import annotations

import re
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
    """Trace a model with TensorFlow; its dynamic dimensions stay dynamic.

    Raises:
        RuntimeError: TensorFlow cannot trace the model.
    """
    import tensorflow as tf

    inputs = zip(model.inputs.specs, model.inputs.names, strict=True)
    signature = (
        [
            tf.TensorSpec(variable.shape, variable.dtype, f"weight_{index}")
            for index, variable in enumerate(model.variables)
        ],
        [tf.TensorSpec(spec.shape, spec.dtype, name) for spec, name in inputs],
    )
    function = concrete(
        tf.function(model.flat, input_signature=signature, autograph=False)
    )
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


def concrete(function: Any) -> Any:
    """Return the concrete function of a `tf.function` with an input signature.

    Raises:
        RuntimeError: TensorFlow cannot trace it.
    """
    try:
        return function.get_concrete_function()
    except Exception as error:
        # Keras adds pages of arguments and colours.
        reason = str(error).split("Arguments received by", 1)[0]
        reason = " ".join(re.sub(r"\x1b\[\d+m", "", reason).split())
        raise RuntimeError(
            f"TensorFlow cannot trace the model with dynamic sizes: {reason[:500]}"
        ) from error
