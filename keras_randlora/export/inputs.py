"""Inputs of a model, as arguments of an exported function.

Keras describes them as a list of positional arguments, each a nested structure of
`keras.InputSpec`. A language model has one argument, a dictionary.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_randlora.tools import keras_internals

# Two sets of sizes for dynamic axes: batch, then the others. None is 1, which exporters
# treat as fixed, and images are large enough for a few strides.
_BATCHES = (2, 3)
_LENGTHS = (5, 7)
_EXTENTS = (64, 96)


class Inputs:
    """The inputs of a model.

    Attributes:
        arguments: Positional arguments, nested `keras.InputSpec`s.
        specs: The same, flat.
        names: The name of each spec: the key of a dictionary, else Keras's name.
        by_name: Whether the model takes one dictionary.
    """

    def __init__(self, model: keras.Model) -> None:
        """Read the inputs of a built model.

        Raises:
            ValueError: The model is a subclass that has never been called.
        """
        self.arguments = list(keras_internals.input_signature(model))
        self.specs = keras.tree.flatten(self.arguments)
        only = self.arguments[0]
        self.by_name = len(self.arguments) == 1 and isinstance(only, dict)
        self.names = [
            spec.name or f"input_{index}" for index, spec in enumerate(self.specs)
        ]
        if self.by_name and len(only) == len(self.specs):
            self.names = sorted(only)  # the order in which Keras flattens it

    def nested(self, flat: Any) -> list[Any]:
        """Return the positional arguments for flat values."""
        return keras.tree.pack_sequence_as(self.arguments, list(flat))

    def open_axes(self) -> list[dict[int, str]]:
        """Return the dynamic axes of each input, and their names."""
        return [
            {
                axis: f"{name}_{axis}" if axis else "batch"
                for axis, size in enumerate(spec.shape)
                if size is None
            }
            for name, spec in zip(self.names, self.specs, strict=True)
        ]

    def example(self, number: int = 0) -> list[np.ndarray]:
        """Return arrays of ones, flat; number 1 has other sizes than number 0."""
        return [
            np.ones(
                _sizes(spec.shape, number), keras.backend.standardize_dtype(spec.dtype)
            )
            for spec in self.specs
        ]


def _sizes(shape: tuple[int | None, ...], number: int) -> list[int]:
    """Return `shape` with sizes for its dynamic axes."""
    others = _EXTENTS if len(shape) > 3 else _LENGTHS
    return [
        size if size is not None else (others if axis else _BATCHES)[number]
        for axis, size in enumerate(shape)
    ]
