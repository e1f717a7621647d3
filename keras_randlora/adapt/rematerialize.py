"""Activation checkpointing for transformer blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_randlora.adapt.sites import Site, sites
from keras_randlora.tools import keras_internals
from keras_randlora.update import computed_after


def rematerialize(model: keras.Model, enabled: bool = True) -> list[str]:
    """Turn on activation checkpointing for the blocks of a model.

    Each block keeps only its input for the backward pass and computes the rest again.
    A training step then needs the activations of one block instead of all, and one more
    forward pass. Outputs and gradients stay the same, and so do dropout, the losses
    that layers add, and the statistics of batch normalization.
    Call it before `fit`, before or after `enable_randlora`; compile a fitted model
    again.

    Keras's own `RematScope` must be entered before the model is built. With Keras 3.15
    it fails for the blocks of keras-hub: on JAX and TensorFlow because of the argument
    `training`, on PyTorch because of dropout.

    Args:
        model: A built model with numbered blocks, adapted or plain.
        enabled: `False` turns it off.

    Returns:
        The paths of the blocks.

    Raises:
        ValueError: The model has no numbered blocks that hold layers.

    Example:
    >>> backbone = keras_hub.models.Llama3Backbone(
    ...     vocabulary_size=9, num_layers=2, num_query_heads=2, num_key_value_heads=1,
    ...     hidden_dim=4, intermediate_dim=6)
    >>> kr.rematerialize(backbone)
    ['transformer_layer_0', 'transformer_layer_1']
    """
    blocks = [site for site in sites(model) if _is_block(site)]
    if not blocks:
        raise ValueError(
            f"Model '{model.name}' has no numbered blocks, such as "
            "'transformer_layer_0', to rematerialize."
        )
    for site in blocks:
        again = functools.partial(_checkpointed, site.layer) if enabled else None
        keras_internals.set_rematerialized(site.layer, again)
    return [site.path for site in blocks]


def _is_block(site: Site) -> bool:
    """Return whether a layer is an outermost numbered layer that holds others."""
    return (
        site.number is not None
        and bool(keras_internals.children(site.layer))
        and not isinstance(site.layer, keras.Model)
        and site.block is None
    )


def _checkpointed(
    layer: keras.layers.Layer, call: Callable[..., Any], *args: Any, **kwargs: Any
) -> Callable[..., Any]:
    """Return `call` with activation checkpointing; Keras passes the arguments."""
    surroundings = keras_internals.surroundings()
    known = keras_internals.known_values()
    seeds = keras_internals.seed_states(layer)
    variables = [*layer.trainable_variables, *seeds]
    changed: list[keras.Variable] = []
    leaves = keras.tree.flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if ops.is_tensor(leaf)]

    def run(*tensors: Any) -> tuple[Any, list[Any], list[Any]]:
        given = list(leaves)
        for place, tensor in zip(places, tensors, strict=False):
            given[place] = tensor
        scope = keras.StatelessScope(collect_losses=True)
        scope.state_mapping.update(known)
        for update in zip(variables, tensors[len(places) :], strict=True):
            scope.add_update(update)
        before, after = dict(scope.state_mapping), scope.state_mapping
        inputs, keywords = keras.tree.pack_sequence_as((args, kwargs), given)
        with keras_internals.within(surroundings), scope:
            outputs = call(*inputs, **keywords)
        changed[:] = [
            variable
            for variable in layer.non_trainable_variables
            if after.get(id(variable)) is not before.get(id(variable))
        ]
        losses = list(scope.losses)
        keras_internals.forget_losses(layer)  # they are the layer's own, see below
        return outputs, [after[id(variable)] for variable in changed], losses

    def called(*args: Any, **kwargs: Any) -> Any:
        values = [ops.convert_to_tensor(v.value) for v in layer.trainable_variables]
        values += [ops.copy(seed.value) for seed in seeds]
        outputs, after, losses = _remat(run)(*(leaves[i] for i in places), *values)
        for variable, value in zip(list(changed), after, strict=True):
            # The second run starts from the same values as the first.
            known.setdefault(id(variable), ops.copy(variable.value))
            variable.assign(value)
        layer.add_loss(losses)
        return outputs

    return called


def _remat(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of tensors that keeps only its inputs for the gradient."""
    if keras.backend.backend() == "torch":
        return _remat_on_torch(run)
    if keras.backend.backend() == "tensorflow":
        return keras.remat(run)
    import jax

    # On a CPU XLA merges the recomputation of `jax.checkpoint` with the first run.
    def backward(tensors: tuple[Any, ...], gradients: Any) -> Any:
        signal = next(g for g in keras.tree.flatten(gradients) if _is_float(g))
        later = [computed_after(signal, t) if _is_float(t) else t for t in tensors]
        return jax.vjp(run, *later)[1](gradients)

    function = jax.custom_vjp(run)
    function.defvjp(lambda *tensors: (run(*tensors), tensors), backward)
    return function


def _remat_on_torch(run: Callable[..., Any]) -> Callable[..., Any]:
    from torch.utils.checkpoint import set_checkpoint_early_stop

    def remat(*tensors: Any) -> Any:
        # PyTorch would end the second run by an exception, which Keras's filter of
        # tracebacks keeps, with all activations, until garbage is collected.
        with set_checkpoint_early_stop(False):
            return keras.remat(run)(*tensors)

    return remat


def _is_float(tensor: Any) -> bool:
    """Return whether a JAX tensor has a floating-point dtype."""
    import jax

    return jax.numpy.issubdtype(tensor.dtype, jax.numpy.floating)
