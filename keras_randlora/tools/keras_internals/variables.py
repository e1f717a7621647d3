"""Private attributes of variables and gradients, of Keras and the backends."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from keras_randlora.tools.keras_internals.calls import surroundings


def set_autocast(variable: keras.Variable, autocast: bool) -> None:
    """Set whether reading a variable converts it under a mixed policy."""
    variable._autocast = autocast


def autocast(tensor: Any) -> Any:
    """Convert a tensor as reading a variable would in this scope."""
    scope = surroundings()["autocast_scope"]
    return tensor if scope is None else scope.maybe_cast(tensor)


def version_of(tensor: Any) -> int:
    """Return the version of a torch tensor, which changes with each write."""
    return tensor._version


def in_forward_mode() -> bool:
    """Return whether torch is in forward-mode autodiff, as in `torch.func.jvp`."""
    from torch.autograd import forward_ad

    return forward_ad._current_level >= 0


def is_transformed() -> bool:
    """Return whether a transform of `torch.func` or forward mode is active."""
    import torch

    return in_forward_mode() or torch._C._are_functorch_transforms_active()


def replace_gradient(outputs: Any, gradients: Callable[..., Sequence[Any]]) -> None:
    """Replace the gradient of a `tf.custom_gradient` by one that holds no graph.

    TensorFlow keeps a registered gradient for ever, and with it the graph.

    Args:
        outputs: The one tensor that a function with `tf.custom_gradient` returned.
        gradients: Maps the tuple of the arguments of that function and the gradient of
            `outputs` to one gradient for each argument.
    """
    from tensorflow.python.framework import ops

    name = outputs.op.get_attr("_gradient_op_type").decode()
    graph: Callable[[], Any] = weakref.ref(outputs.graph)
    own = outputs.op.name

    def gradient(op: Any, of_outputs: Any, *_: Any) -> list[Any]:
        # `tf.saved_model.save` names no operation.
        op = op or graph().get_operation_by_name(own)
        # It passes on the outputs and the arguments, as one `IdentityN`.
        return [None, *gradients(tuple(op.inputs)[1:], of_outputs)]

    registered = ops.gradient_registry._registry
    registered[name] = {**registered[name], "type": gradient}
    weakref.finalize(outputs.graph, registered.pop, name, None).atexit = False


def has_layout(variable: keras.Variable) -> bool:
    """Return whether a variable has a layout over devices (`keras.distribution`)."""
    return variable._layout is not None


@contextlib.contextmanager
def held_as(variable: keras.Variable, value: Any) -> Iterator[None]:
    """Let a variable on JAX give out another value within the block, laid out anyhow.

    Args:
        variable: The variable; its own value is put back as it was.
        value: An array of its shape and dtype, of JAX or NumPy.
    """
    own, variable._value = variable._value, value
    try:
        yield
    finally:
        variable._value = own


def layout_map_of(distribution: Any) -> Any:
    """Return the layout map of a `ModelParallel`, `None` for other distributions."""
    return getattr(distribution, "_layout_map", None)


def strategy_of(model: keras.Model) -> Any:
    """Return the `tf.distribute.Strategy` a model was built under, or `None`."""
    return model._distribute_strategy
