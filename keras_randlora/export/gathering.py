"""A model over several hosts, whole on the one that writes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

from keras_randlora.tools import (
    Hosts,
    is_divided,
    keras_internals,
    to_numpy,
    undistributed,
)


@contextlib.contextmanager
def gathered(model: keras.Model, hosts: Hosts) -> Iterator[None]:
    """Let the process that writes see every variable of a model whole.

    What is divided over hosts is gathered into its memory, one variable after the
    other, and the variables are as they were after the block. No distribution is set
    there: a variable that a writer makes would wait for the other processes.

    Args:
        model: The model; every process enters the block.
        hosts: The processes that hold it.
    """
    if hosts.alone:
        yield
        return
    with contextlib.ExitStack() as undo:
        for variable in model.variables:
            if is_divided(variable):
                whole = to_numpy(variable)
                if hosts.writes:
                    undo.enter_context(keras_internals.held_as(variable, whole))
        undo.enter_context(undistributed())
        yield
