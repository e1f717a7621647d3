"""Functions with a hand-written gradient, and the order of their computations.

`keras.ops.custom_gradient` is not used: on torch it turns an exception inside
the function into NaN gradients, and its gradient signature differs by backend.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import keras
from keras import ops

from keras_randlora.tools import is_traced, keras_internals, loops
from keras_randlora.update.linear_map import linear_map

Array = Any
Forward = Callable[..., Array]
Backward = Callable[[tuple[Array, ...], Array], tuple[Array, ...]]
_KINDS: weakref.WeakKeyDictionary[Any, dict[Hashable, Forward]]
_KINDS = weakref.WeakKeyDictionary()


def with_gradient(forward: Forward, backward: Backward, *, trained: int) -> Forward:
    """Return `forward` with `backward` as its gradient.

    Function transforms take it as any function: forward mode, which has no use for
    `backward`, and second derivatives differentiate `forward` and `backward` as they
    are written.

    Args:
        forward: Maps tensors to one tensor. Must not use other tensors.
        backward: Maps the tuple of `forward`'s arguments and the gradient of
            its result to one gradient for each argument that has one. Only the
            arguments are kept for it.
        trained: How many of the arguments have a gradient, the first ones. The others
            are frozen.
    """
    return _BACKENDS[keras.backend.backend()](forward, backward, trained)


def with_gradient_of_kind(
    owner: Any,
    kind: Hashable,
    forward: Forward,
    backward: Backward,
    *,
    trained: int,
) -> Forward:
    """Return `with_gradient(…)`, the same for all layers of a kind.

    JAX and TensorFlow then trace it once for all of them.

    Args:
        owner: What they share; the function is kept as long as it lives.
        kind: All that `forward` and `backward` depend on besides.
        forward: As in `with_gradient`; must not refer to `owner`.
        backward: As in `with_gradient`; must not refer to `owner`.
        trained: As in `with_gradient`.
    """
    if keras.backend.backend() == "torch":
        return with_gradient(forward, backward, trained=trained)
    known = _KINDS.setdefault(owner, {})
    if kind not in known:
        known[kind] = with_gradient(forward, backward, trained=trained)
    return known[kind]


def computed_after(signal: Array, tensor: Array) -> Array:
    """Return `tensor`, unchanged, as a value that depends on `signal`: a barrier.

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
        if not loops.on_cpu(tensor):
            return jax.lax.optimization_barrier((signal, tensor))[1]
    first = signal[(slice(0, 1),) * len(signal.shape)]
    never = ops.logical_and(ops.equal(first, first), ops.not_equal(first, first))
    return tensor + ops.cast(ops.any(never), tensor.dtype)


def _torch(forward: Forward, backward: Backward, trained: int) -> Forward:
    import torch

    def apply(*tensors: Any) -> Any:
        if keras_internals.in_forward_mode():
            frozen = (tensor.detach() for tensor in tensors[trained:])
            return forward(*tensors[:trained], *frozen)
        # Beneath `vmap` a tensor does not say that it requires a gradient.
        required = any(tensor.requires_grad for tensor in tensors)
        if torch.is_grad_enabled() and (required or keras_internals.is_transformed()):
            return _FUNCTION.apply(forward, backward, *tensors)
        return forward(*tensors)

    return apply


def _torch_function() -> Any:
    """Return the class of autograd functions of any `forward` and `backward`."""
    import torch

    class Function(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(forward: Forward, backward: Backward, *tensors: Any) -> Any:
            return forward(*tensors)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            _, ctx.gradients, *tensors = inputs
            ctx.save_for_backward(*tensors)
            ctx.autocast = _autocast_around(tensors[0].device.type)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            tensors = ctx.saved_tensors
            gradients_of, autocast = ctx.gradients, ctx.autocast
            with autocast():
                gradients = gradients_of(tensors, gradient)
            frozen = len(tensors) - len(gradients)
            return None, None, *gradients, *(None,) * frozen

    return Function


# Made here, since the compiler of torch follows no definition of a class.
_FUNCTION: Any = _torch_function() if keras.backend.backend() == "torch" else None


def _autocast_around(device: str) -> Callable[[], Any]:
    """Return what sets up `torch.autocast` as it is now; a backward pass has none."""
    import torch

    if not torch.is_autocast_enabled(device):
        return contextlib.nullcontext
    return functools.partial(torch.autocast, device, torch.get_autocast_dtype(device))


def _jax(forward: Forward, backward: Backward, trained: int) -> Forward:
    import jax
    from jax.custom_derivatives import SymbolicZero

    # `jax.custom_vjp` would refuse forward mode.
    function = jax.custom_jvp(forward)

    def slope(tensors: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        moved = [i for i in range(trained) if not isinstance(tangents[i], SymbolicZero)]
        outputs = function(*tensors)
        if not moved:
            return outputs, jax.numpy.zeros_like(outputs)

        def along(tensors: tuple[Any, ...], *tangents: Any) -> list[Any]:
            def of_moved(*values: Any) -> Any:
                given = dict(enumerate(tensors)) | dict(zip(moved, values, strict=True))
                return forward(*given.values())

            primals = tuple(tensors[i] for i in moved)
            return [jax.jvp(of_moved, primals, tangents)[1]]

        def against(tensors: tuple[Any, ...], gradient: Any) -> list[Any]:
            gradients = backward(tensors, gradient)
            return [gradients[i] for i in moved]

        changes = [tangents[i] for i in moved]
        return outputs, *linear_map(along, against, tensors, changes)

    function.defjvp(slope, symbolic_zeros=True)
    # Within a program: one trace and one piece of code for all calls.
    compiled = jax.jit(function)

    def apply(*tensors: Any) -> Any:
        return compiled(*tensors) if is_traced() else function(*tensors)

    return apply


def _tensorflow(forward: Forward, backward: Backward, trained: int) -> Forward:
    import tensorflow as tf

    # Within a graph: one trace and one function of it for all calls.
    forward_once = tf.function(forward, autograph=False)
    backward_once = tf.function(backward, autograph=False)

    def gradients(tensors: tuple[Any, ...], gradient: Any) -> tuple[Any, ...]:
        frozen = len(tensors) - trained
        gradient = tf.convert_to_tensor(gradient)  # slices, of a sparse product
        compute = backward if tf.executing_eagerly() else backward_once
        return *compute(tensors, gradient), *(None,) * frozen

    @tf.custom_gradient
    def function(*tensors: Any) -> Any:
        compute = forward if tf.executing_eagerly() else forward_once
        return compute(*tensors), lambda gradient: gradients(tensors, gradient)

    def apply(*tensors: Any) -> Any:
        # A variable would count as one that `forward` closes over.
        outputs = function(*map(tf.convert_to_tensor, tensors))
        if not tf.executing_eagerly():
            keras_internals.replace_gradient(outputs, gradients)
        return outputs

    return apply


_BACKENDS = {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}
