"""Merge the updates into the kernels, permanently or inside a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import keras

from keras_randlora.adapt.compiled import (
    compiled_functions,
    follow_changes,
    models_holding,
    put_back,
    renew_optimizers,
)
from keras_randlora.adapt.diagnostics import require_finite_updates, warn_of_zero_update
from keras_randlora.adapt.sites import Site
from keras_randlora.adapt.state import (
    HALF_MERGED,
    MERGED,
    AdaptedState,
    adapted_state,
    forget,
    in_block,
    remember,
)
from keras_randlora.layers import (
    RandLoRALayer,
    hold,
    in_use,
    kept,
    restore_float,
    write_kernel,
)
from keras_randlora.tools import hosts_of, is_traced, quick_collection, shown


def merge_randlora(model: keras.Model, *, dequantize: bool = False) -> None:
    """Merge the updates into the kernels and make the layers plain again.

    Restores the `trainable` flags from before `enable_randlora`. A compiled model stays
    compiled; its optimizer starts anew if it is fitted again.

    Layers are merged one after the other. After an interruption the outputs are still
    the same, and a second call merges the rest. A kernel that is sharded over
    devices or hosts is merged shard by shard and never gathered; every process calls.

    Args:
        model: An adapted model.
        dequantize: Whether quantized kernels become floating-point kernels, which hold
            the update exactly. By default they are quantized again, which rounds the
            update to their coarse steps.

    Raises:
        ValueError: The model is not adapted, or a kernel would not be finite. The
            model is unchanged.
        RuntimeError: Not all processes that hold the model called, or it failed in
            another one.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> _ = model.get_layer("d").randlora.lambda_.assign(np.ones((2, 2)))
    >>> x = np.ones((1, 6))
    >>> tuned = model.predict_on_batch(x)
    >>> kr.merge_randlora(model)
    >>> [weight.name for weight in model.weights]
    ['kernel', 'bias']
    >>> bool(np.allclose(model.predict_on_batch(x), tuned, atol=1e-4))
    True
    """
    state = adapted_state(model, half_merged=True)
    left = [s for s in state.selection.adapted if isinstance(s.layer, RandLoRALayer)]
    with hosts_of(model.variables).together("merge_randlora"):
        warn_of_zero_update(model, left)
        _merge_all(model, state, left, dequantize)


def _merge_all(
    model: keras.Model, state: AdaptedState, left: Sequence[Site], dequantize: bool
) -> None:
    """Merge the layers that are left, then forget the adaptation."""
    require_finite_updates(left)
    layers = state.selection.layers
    models = models_holding(model, layers)
    remember(model, state)
    try:
        with quick_collection():
            for site in shown(left, "Merging", "layer"):
                _merge(site.layer, dequantize)
    finally:
        if not all(isinstance(layer, RandLoRALayer) for layer in layers):
            state.block = HALF_MERGED
        follow_changes(models, layers)
    forget(model, state.was_trainable)
    renew_optimizers(models)


@contextlib.contextmanager
def merged(model: keras.Model) -> Iterator[keras.Model]:
    """Run with merged kernels and plain layers, then restore everything exactly.

    Inside the block the model computes at the speed of the base model and can be
    exported. This needs host memory for a copy of the adapted kernels, or of this
    host's shards of them. Quantized kernels are quantized again, with the update.

    Raises:
        ValueError: The model is not adapted, or a kernel would not be finite.
        RuntimeError: A compiler traces the call: kernels cannot be written there; or
            not all processes that hold the model called.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> with kr.merged(model):
    ...     model.save("plain.keras")  # loads without this package
    >>> len(kr.summary(model).layers)
    1
    """
    _require_untraced()
    state = adapted_state(model)
    layers = state.selection.layers
    with hosts_of(model.variables).together("merged"):
        require_finite_updates(state.selection.adapted)
    models = models_holding(model, layers)
    functions = compiled_functions(models)
    with contextlib.ExitStack() as undo:
        undo.callback(put_back, functions)
        undo.callback(follow_changes, models, layers)
        for layer in shown(layers, "Merging", "layer"):
            undo.callback(hold, layer, kept(layer))
            undo.callback(layer.reattach, layer.attachment())
            kernel = layer.merged_kernel()
            layer.detach()
            write_kernel(layer, kernel)
        undo.enter_context(in_block(model, state, MERGED))
        follow_changes(models, layers)
        yield model


def _merge(layer: RandLoRALayer, dequantize: bool) -> None:
    """Merge one layer, or leave it unchanged."""
    kernel = layer.merged_kernel()
    if dequantize and layer.quantization_mode is not None:
        layer.detach()
        restore_float(layer, kernel)
        return
    with contextlib.ExitStack() as undo:
        undo.callback(hold, layer, in_use(layer))
        undo.callback(layer.reattach, layer.attachment())
        layer.detach()
        write_kernel(layer, kernel)
        undo.pop_all()


def _require_untraced() -> None:
    if is_traced():
        raise RuntimeError(
            "`merged(model)` was entered while a function is traced (`jax.jit`, "
            "`tf.function`, a training step), where kernels cannot be written and "
            "restored. Enter it outside; for the base model's outputs within a loss "
            "use `base_only(model)`."
        )
