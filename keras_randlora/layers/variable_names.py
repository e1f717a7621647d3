"""Names of a layer's own variables that are the same in every process."""

from __future__ import annotations

import re
from collections.abc import Sequence

import keras

from keras_randlora.tools import keras_internals

# Keras's name for a variable that is added without one.
_NAMELESS = re.compile(r"variable_\d+")
# How the paths of λ and γ end.
_LAMBDA = "randlora/lambda"
_FACTORS = (_LAMBDA, "randlora/gamma")


def named_weights(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Return a layer's own variables, by stable names.

    Keras numbers nameless variables through the whole process, and allows equal names.
    Here a nameless variable is `variable`, and the second `scale` of a layer is
    `scale#2`.
    """
    weights = keras_internals.own_variables(layer)
    names = stable_names([variable.name for variable in weights])
    return dict(zip(names, weights, strict=True))


def stable_names(names: Sequence[str]) -> list[str]:
    """Return the names of `named_weights` for the names that Keras gave."""
    found: list[str] = []
    taken: dict[str, int] = {}
    for name in names:
        name = "variable" if _NAMELESS.fullmatch(name) else name
        taken[name] = taken.get(name, 0) + 1
        found.append(name if taken[name] == 1 else f"{name}#{taken[name]}")
    return found


def is_lambda(path: str) -> bool:
    """Return whether the path of a variable is that of a λ."""
    return path.endswith(_LAMBDA)


def is_factor(variable: keras.Variable) -> bool:
    """Return whether a variable is a λ or a γ."""
    return variable.path.endswith(_FACTORS)
