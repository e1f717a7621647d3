"""Functions with a hand-written gradient, and the order of their computations.

`keras.ops.custom_gradient` would do, but on torch it turns an exception inside
the function into NaN gradients, and its gradient signature differs by backend.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

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


def computed_after(signal: Array, tensor: Array) -> Array:
    """Return `tensor`, unchanged, as a value that exists only once `signal` does.

    A compiler otherwise forms the same adapted kernel once for the forward and the
    backward pass, and all of them at the start of the step, and keeps them all alive.

    Args:
        signal: A floating-point tensor.
        tensor: A tensor of any numeric dtype.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        return tensor
    if backend == "jax":
        import jax

        # XLA drops the barrier too early on a CPU.
        if jax.default_backend() != "cpu":
            return jax.lax.optimization_barrier((signal, tensor))[1]
    first = signal[(slice(0, 1),) * len(signal.shape)]
    never = ops.logical_and(ops.equal(first, first), ops.not_equal(first, first))
    return tensor + ops.cast(ops.any(never), tensor.dtype)


def _torch(forward: Forward, backward: Backward) -> Forward:
    import torch

    def apply(*tensors: Any) -> Any:
        if torch.is_grad_enabled():
            return _torch_function().apply(forward, backward, *tensors)
        return forward(*tensors)

    return apply


@functools.cache
def _torch_function() -> Any:
    """Return the autograd function of any `forward` and `backward`."""
    import torch

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, forward: Forward, backward: Backward, *tensors: Any
        ) -> Any:
            ctx.save_for_backward(*tensors)
            ctx.gradients = backward
            ctx.autocast = _autocast_around(tensors[0].device.type)
            return forward(*tensors)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            with ctx.autocast():
                return None, None, *ctx.gradients(ctx.saved_tensors, gradient)

    return Function


def _autocast_around(device: str) -> Callable[[], Any]:
    """Return what sets up `torch.autocast` as it is now; a backward pass has none."""
    import torch

    if not torch.is_autocast_enabled(device):
        return contextlib.nullcontext
    return functools.partial(torch.autocast, device, torch.get_autocast_dtype(device))


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
