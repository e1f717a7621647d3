"""Functions with a hand-written gradient, the same on every backend.

`keras.ops.custom_gradient` would do, but on torch it turns an exception inside
the function into NaN gradients, and its gradient signature differs by backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

Array = Any
Forward = Callable[..., Array]
Backward = Callable[[tuple[Array, ...], Array], tuple[Array | None, ...]]


def with_gradient(forward: Forward, backward: Backward) -> Forward:
    """Return `forward` with `backward` as its gradient.

    Args:
        forward: Maps tensors to one tensor. Must not use other tensors.
        backward: Maps the tuple of `forward`'s arguments and the gradient of
            its result to one gradient for each argument, `None` for arguments
            that are frozen. Only the arguments are kept for it.
    """
    return _BACKENDS[keras.backend.backend()](forward, backward)


def _torch(forward: Forward, backward: Backward) -> Forward:
    import torch

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            ctx.save_for_backward(*tensors)
            return forward(*tensors)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return backward(ctx.saved_tensors, gradients[0])

    def apply(*tensors: Any) -> Any:
        if torch.is_grad_enabled():
            return Function.apply(*tensors)
        return forward(*tensors)

    return apply


def _jax(forward: Forward, backward: Backward) -> Forward:
    import jax

    function = jax.custom_vjp(forward)
    function.defvjp(lambda *tensors: (forward(*tensors), tensors), backward)
    return function


def _tensorflow(forward: Forward, backward: Backward) -> Forward:
    import tensorflow as tf

    @tf.custom_gradient
    def function(*tensors: Any) -> Any:
        return forward(*tensors), lambda gradient: backward(tensors, gradient)

    # A variable among the arguments would count as one that `forward` closes over.
    return lambda *tensors: function(*map(tf.convert_to_tensor, tensors))


_BACKENDS = {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}
