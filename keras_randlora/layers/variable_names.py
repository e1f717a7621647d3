"""Names of a layer's own variables that do not change from process to process."""

from __future__ import annotations

import re
from collections.abc import Sequence

import keras

from keras_randlora.tools import keras_internals

# What Keras calls a variable that is added without a name.
_NAMELESS = re.compile(r"variable_\d+")
# How the paths of λ and γ end.
_LAMBDA = "randlora/lambda"
_FACTORS = (_LAMBDA, "randlora/gamma")


def named_weights(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Return the variables that a layer holds itself, by names that do not change.

    Keras numbers variables without a name through the whole process, and lets two have
    the same: here the second `scale` of a layer is `scale#2`, and a nameless one is
    `variable`.
    """
    weights = keras_internals.own_variables(layer)
    names = stable_names([variable.name for variable in weights])
    return dict(zip(names, weights, strict=True))


def stable_names(names: Sequence[str]) -> list[str]:
    """Return the names of `named_weights` for those that Keras gave."""
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
