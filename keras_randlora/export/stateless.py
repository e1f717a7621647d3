"""A model as a function of its weights and inputs.

An exporter that gets the weights as inputs neither copies nor folds them. The writer
adds each of them once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_randlora.export.inputs import Inputs


class StatelessModel:
    """A model whose weights are arguments.

    Attributes:
        inputs: The inputs of the model.
        variables: Its variables, in the order of the arguments.
        names: A name for each variable, its path unless two share it.
        output_names: After a call, a name for each output: a key of a dictionary, or
            `output_0` and so on; `output_KEY` where an input has this name.
    """

    def __init__(self, model: keras.Model) -> None:
        """Take a built model."""
        self._model = model
        self._trainable = len(model.trainable_variables)
        self.inputs = Inputs(model)
        self.variables = [*model.trainable_variables, *model.non_trainable_variables]
        self.names: list[str] = []
        for index, variable in enumerate(self.variables):
            taken = variable.path in {*self.names, *self.inputs.names}
            self.names.append(f"{variable.path}_{index}" if taken else variable.path)
        self.output_names: list[str] = []

    def __call__(self, weights: Sequence[Any], inputs: Sequence[Any]) -> Any:
        """Return the outputs for flat inputs, with dropout off."""
        outputs, _ = self._model.stateless_call(
            list(weights[: self._trainable]),
            list(weights[self._trainable :]),
            *self.inputs.nested(inputs),
            training=False,
        )
        flat = keras.tree.flatten(outputs)
        keyed = isinstance(outputs, dict) and len(outputs) == len(flat)
        names = sorted(outputs) if keyed else [str(i) for i in range(len(flat))]
        taken = {*self.names, *self.inputs.names}
        self.output_names = [
            name if keyed and name not in taken else f"output_{name}" for name in names
        ]
        return outputs

    def flat(self, weights: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """Return the same outputs as a list."""
        return keras.tree.flatten(self(weights, inputs))
