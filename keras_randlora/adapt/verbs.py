"""Enable, disable and merge RandLoRA in a live model."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_randlora.adapt.compiled import (
    compiled_functions,
    forget_functions,
    models_holding,
    put_back,
    renew_optimizer,
    require_new_compile,
)
from keras_randlora.adapt.diagnostics import (
    require_finite_updates,
    warn_of_large_steps,
    warn_of_shared_kernels,
    warn_of_unsaved,
    warn_of_zero_update,
)
from keras_randlora.adapt.distribution import require_same_distribution
from keras_randlora.adapt.recover import recover
from keras_randlora.adapt.report import Report, summary
from keras_randlora.adapt.targets import Selection, select, sites
from keras_randlora.config import GIVEN, RandLoRAConfig
from keras_randlora.layers import (
    ADAPTED_CLASSES,
    Attachment,
    LayerOptions,
    RandLoRAAdapter,
    RandLoRALayer,
    float_policy,
    held_arrays,
    hold,
    named_weights,
    pass_gradients,
    restore_float,
    restore_rounding,
)
from keras_randlora.tools import shown
from keras_randlora.update import BasisBank, GivenBasisBank, UpdateShape

Bases = tuple[np.ndarray, np.ndarray]
_STATE = "_randlora_state"
HALF_MERGED = "half merged"


class TrainableFlag(NamedTuple):
    """Whether a layer and its own variables were trainable."""

    layer: keras.layers.Layer
    trainable: bool
    variables: list[tuple[keras.Variable, bool]]


@dataclass
class AdaptedState:
    """What `enable_randlora` remembers of a model.

    Attributes:
        config: The options it was called with.
        selection: The adapted and the also trained layers.
        extra: The variables trained beside λ and γ, by path.
        was_trainable: What was trainable before.
        block: The block that the model is in: `"merged"`, `"base_only"` or `None`;
            `HALF_MERGED` after an interrupted merge.
    """

    config: RandLoRAConfig
    selection: Selection
    extra: dict[str, keras.Variable]
    was_trainable: list[TrainableFlag]
    block: str | None = None

    def variables(self) -> dict[str, keras.Variable]:
        """Return λ and γ of every adapted layer and the extra ones, by path."""
        found = {}
        for site in self.selection.adapted:
            found[f"{site.path}/lambda"] = site.layer.randlora.lambda_
            found[f"{site.path}/gamma"] = site.layer.randlora.gamma
        return {**found, **self.extra}


def enable_randlora(
    model: keras.Model,
    rank: int = 32,
    targets: Any = None,
    *,
    alpha: float | None = None,
    basis: str = "uniform",
    sparsity: float | None = None,
    seed: int = 0,
    num_bases: int | None = None,
    dropout: float = 0.0,
    exclude: Any = (),
    layers: Any = None,
    train_bias: str = "none",
    also_train: Any = (),
    basis_storage: str = "stored",
    compute: str = "auto",
) -> Report:
    """Freeze a model and add a trainable RandLoRA update to its linear layers.

    The model is adapted in place, and its outputs stay exactly the same until it
    is trained. Everything is checked before the first layer is touched.

    Args:
        model: A built model: functional, sequential, subclassed or keras-hub.
        rank: Rank of each basis. A larger rank means *fewer* trainable parameters.
        targets: Layer names, paths, globs, `"re:…"` or `"attention"`, `"mlp"`,
            `"all-linear"`. Default: the model's own `default_lora_layer_names()`,
            else its attention layers.
        alpha: The update is scaled by `alpha / rank`; default `20 * rank`.
        basis: Distribution of the bases: `"uniform"`, `"normal"`, `"binary"`,
            `"sparse"`, `"very_sparse"`, `"ternary"`, or `"kronecker"`, whose products
            cost a small part of a dense basis's.
        sparsity: For `basis="ternary"`: each sign has probability `1 / sparsity`.
        seed: Integer in `[0, 2**32)` that determines the bases.
        num_bases: Upper bound on the bases of a layer; default full rank.
        dropout: Rate of dropout on the adapter's input.
        exclude: Patterns subtracted from `targets`.
        layers: Indices of the blocks to adapt; default all.
        train_bias: `"none"`, `"adapted"` or `"all"`.
        also_train: Patterns of layers trained as they are, saved with the adapter.
        basis_storage: `"stored"` or `"regenerated"`.
        compute: `"auto"`, `"materialized"` or `"factored"`.

    Returns:
        A `Report` of the adapted layers and the counts.

    Raises:
        ValueError: An option is out of range, a target matches nothing or a layer
            of another kind, the model is not built or already adapted. The model
            is unchanged.
        TypeError: An option has the wrong type. The model is unchanged.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    >>> report = kr.enable_randlora(model, rank=2, targets="all-linear")
    >>> report.trainable
    12
    """
    config = RandLoRAConfig(
        rank=rank,
        targets=targets,
        alpha=alpha,
        basis=basis,
        sparsity=sparsity,
        seed=seed,
        num_bases=num_bases,
        dropout=dropout,
        exclude=exclude,
        layers=layers,
        train_bias=train_bias,
        also_train=also_train,
        basis_storage=basis_storage,
        compute=compute,
    )
    return enable_with_config(model, config)


def enable_with_config(
    model: keras.Model,
    config: RandLoRAConfig,
    selection: Selection | None = None,
    *,
    bases: Bases | None = None,
) -> Report:
    """Adapt a model as `enable_randlora` does, with the options as one value.

    Args:
        model: A built model.
        config: The options.
        selection: The layers to adapt and train, where they are known already;
            default: those that `config` selects.
        bases: With `basis="given"`: `basis_a` of shape `(r, s)` and `basis_b` of
            shape `(l, n * r)`, large enough for every layer.

    Returns:
        A `Report` of the adapted layers and the counts.
    """
    require_plain(model)
    selection = selection or select(model, config)
    options = LayerOptions.from_config(config, config.train_bias != "none")
    require_same_distribution(
        model, selection.adapted, adapter_shapes(model, config, selection)
    )
    warn_of_shared_kernels(sites(model), selection.adapted)
    bank = _bank_for(selection, options, bases)
    flags = _trainable_flags(model)
    extra = _extra_variables(model, selection, config)
    models = models_holding(model, selection.layers)
    try:
        _attach_all(selection, options, bank)
        _train_only(model, extra)
        _remember(model, AdaptedState(config, selection, extra, flags))
    except BaseException:  # Ctrl-C in the middle, memory that does not suffice
        _make_plain(selection)
        _forget(model, flags)
        raise
    forget_functions(models, selection.layers)
    require_new_compile(models)
    return summary(model)


def update_shapes(selection: Selection, options: LayerOptions) -> list[UpdateShape]:
    """Return the sizes of the updates that the selected plain layers would get."""
    return [
        ADAPTED_CLASSES[type(layer)].shape_for(layer, options)
        for layer in selection.layers
    ]


def adapter_shapes(
    model: keras.Model, config: RandLoRAConfig, selection: Selection
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the entries that `get_adapter` would have.

    Args:
        model: A plain model.
        config: The options.
        selection: The layers to adapt and train.
    """
    options = LayerOptions.from_config(config, config.train_bias != "none")
    updates = update_shapes(selection, options)
    shapes: dict[str, tuple[int, ...]] = {}
    for site, shape in zip(selection.adapted, updates, strict=True):
        shapes[f"{site.path}/lambda"] = (shape.rank, shape.num_bases)
        shapes[f"{site.path}/gamma"] = (shape.num_bases, shape.smaller)
    extra = _extra_variables(model, selection, config)
    return {**shapes, **{path: tuple(v.shape) for path, v in extra.items()}}


def disable_randlora(model: keras.Model) -> None:
    """Make the layers plain again, with their base kernels bit for bit.

    Biases and layers that were trained as they are keep their trained values. What
    `enable_randlora` froze is thawed to what it was. A compiled model stays
    compiled; its optimizer starts anew if it is fitted again.

    Raises:
        ValueError: The model is not adapted.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> kr.disable_randlora(model)
    >>> [weight.name for weight in model.trainable_weights]
    ['kernel', 'bias']
    """
    state = adapted_state(model)
    models = models_holding(model, state.selection.layers)
    _make_plain(state.selection)
    forget_functions(models, state.selection.layers)
    _finish(model, state, models)


def merge_randlora(model: keras.Model, *, dequantize: bool = False) -> None:
    """Fold the updates into the kernels and make the layers plain again.

    What `enable_randlora` froze is thawed to what it was. A compiled model stays
    compiled; its optimizer starts anew if it is fitted again.

    Layer after layer is merged and made plain. After an interruption the model
    computes the same as ever, and a second call merges the rest.

    Args:
        model: An adapted model.
        dequantize: Whether kernels that are quantized become kernels in floating
            point, which hold the update without loss. By default they are quantized
            again as they were, which rounds the update to their coarse steps.

    Raises:
        ValueError: The model is not adapted, or a kernel would not be finite. The
            model is unchanged.

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
    warn_of_zero_update(model, left)
    require_finite_updates(left)
    layers = state.selection.layers
    models = models_holding(model, layers)
    try:
        for site in shown(left, "Merging", "layer"):
            _merge(site.layer, dequantize)
    finally:
        if not all(isinstance(layer, RandLoRALayer) for layer in layers):
            state.block = HALF_MERGED
        forget_functions(models, layers)
    _finish(model, state, models)


@contextlib.contextmanager
def merged(model: keras.Model) -> Iterator[keras.Model]:
    """Run with merged kernels and plain layers, then restore everything exactly.

    For the time of the block the model computes at the speed of the base model
    and can be exported. Needs host memory for a copy of the adapted kernels. Quantized
    kernels hold the update quantized again as they were.

    Raises:
        ValueError: The model is not adapted, or a kernel would not be finite.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> with kr.merged(model):
    ...     model.save("plain.keras")  # loads without this package
    >>> len(kr.summary(model).layers)
    1
    """
    state = adapted_state(model)
    adapted = state.selection.layers
    require_finite_updates(state.selection.adapted)
    models = models_holding(model, adapted)
    functions = compiled_functions(models)
    kernels = [held_arrays(layer) for layer in adapted]
    attachments: list[Attachment] = []
    try:
        for layer in shown(adapted, "Merging", "layer"):
            layer.write_merged()
        for layer in adapted:
            attachments.append(_detach(layer))
        state.block = "merged"
        forget_functions(models, adapted)
        yield model
    finally:
        for layer, kernel in zip(adapted, kernels, strict=True):
            hold(layer, kernel)
        for layer, attachment in zip(adapted, attachments, strict=False):
            _reattach(layer, attachment)
        state.block = None
        forget_functions(models, adapted)
        put_back(functions)


@contextlib.contextmanager
def base_only(model: keras.Model) -> Iterator[keras.Model]:
    """Run with the adapters off, then on again; nothing is compiled anew.

    λ is set to zero for the time of the block, so that the outputs are exactly
    those of the base model (the reference policy of preference optimization).
    Biases and layers that are trained as they are keep their trained values.

    Raises:
        ValueError: The model is not adapted.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> x = np.ones((1, 6))
    >>> _ = model.get_layer("d").randlora.lambda_.assign(np.ones((2, 2)))
    >>> tuned = model.predict_on_batch(x)
    >>> with kr.base_only(model):
    ...     base = model.predict_on_batch(x)
    >>> again = model.predict_on_batch(x)
    >>> bool(np.allclose(base, tuned)), bool(np.allclose(again, tuned))
    (False, True)
    """
    state = adapted_state(model)
    adapters = [site.layer.randlora for site in state.selection.adapted]
    saved = [np.array(ops.convert_to_numpy(a.lambda_)) for a in adapters]
    try:
        for adapter in adapters:
            adapter.lambda_.assign(np.zeros(adapter.lambda_.shape, "float32"))
        state.block = "base_only"
        yield model
    finally:
        state.block = None
        for adapter, value in zip(adapters, saved, strict=True):
            adapter.lambda_.assign(value)


def is_adapted(model: keras.Model) -> bool:
    """Return whether the model is adapted, by `enable_randlora` or when built."""
    return getattr(model, _STATE, None) is not None or recover(model) is not None


def adapted_state(model: keras.Model, *, half_merged: bool = False) -> AdaptedState:
    """Return what `enable_randlora` remembered, or what the adapted layers tell.

    Args:
        model: An adapted model.
        half_merged: Whether an interrupted `merge_randlora` may have left it.

    Raises:
        ValueError: The model is not adapted, within `merged` or `base_only`, half
            merged, or was built of layers with different options.
    """
    _require_model(model)
    state = getattr(model, _STATE, None) or _recovered_state(model)
    if state is None:
        inside = [s.path for s in sites(model) if isinstance(s.layer, RandLoRALayer)]
        remedy = (
            f"'{inside[0]}' is adapted, but `enable_randlora` was called on another "
            "model that holds it: pass that model."
            if inside
            else "Call `enable_randlora(model, ...)` first."
        )
        raise ValueError(f"Model '{model.name}' is not adapted by RandLoRA. {remedy}")
    if state.block == HALF_MERGED:
        if half_merged:
            return state
        raise ValueError(
            f"Model '{model.name}' is merged in part: `merge_randlora(model)` was "
            "interrupted. Call it again, which merges the rest."
        )
    if state.block:
        raise ValueError(
            f"Model '{model.name}' is inside a `{state.block}(model)` block. Leave the "
            "block first."
        )
    return state


def given_bases(model: keras.Model) -> Bases | None:
    """Return the bases that were passed in, `None` where they follow from the seed.

    Returns:
        `basis_a` of shape `(r, s)` and `basis_b` of shape `(l, n * r)`, float32.

    Raises:
        ValueError: The model is not adapted.
    """
    bank = adapted_state(model).selection.adapted[0].layer.bank
    return bank.draw() if bank.given else None


def _require_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            "RandLoRA adapts a `keras.Model`. Received: "
            f"{model!r} (of type {type(model).__name__})."
        )


def require_plain(model: keras.Model) -> None:
    """Check that no layer of the model is adapted.

    Raises:
        ValueError: One is.
        TypeError: It is not a Keras model.
    """
    _require_model(model)
    adapted = [s.path for s in sites(model) if isinstance(s.layer, RandLoRALayer)]
    if adapted or getattr(model, _STATE, None) is not None:
        where = f" Layer '{adapted[0]}' is." if adapted else ""
        raise ValueError(
            f"Model '{model.name}' is already adapted by RandLoRA.{where} Call "
            "`disable_randlora(model)` or `merge_randlora(model)` first."
        )


def _bank_for(
    selection: Selection, options: LayerOptions, bases: Bases | None
) -> BasisBank:
    shapes = update_shapes(selection, options)
    dtype = float_policy(selection.adapted[0].layer)
    if bases is None:
        return options.bank_for(shapes, dtype=dtype)
    if options.basis != GIVEN:
        raise ValueError(
            "Bases are passed in with basis='given' only. Received: "
            f"basis={options.basis!r}."
        )
    bank = GivenBasisBank.of_arrays(*bases, name="randlora_bank", dtype=dtype)
    for site, shape in zip(selection.adapted, shapes, strict=True):
        bank.require_serves(shape, site.path)
    return bank


def _attach_all(selection: Selection, options: LayerOptions, bank: BasisBank) -> None:
    for site in shown(selection.adapted, "Adapting", "layer"):
        site.layer.__class__ = ADAPTED_CLASSES[type(site.layer)]
        site.layer.attach(options, bank)


def _make_plain(selection: Selection) -> None:
    """Take the updates off all layers that have one."""
    for layer in selection.layers:
        if hasattr(layer, "randlora"):
            _detach(layer)
        elif isinstance(layer, RandLoRALayer):  # adapting it was cut short
            layer.__class__ = layer.plain_class


def _detach(layer: RandLoRALayer) -> Attachment:
    attachment = layer.detach()
    layer.__class__ = layer.plain_class
    return attachment


def _merge(layer: RandLoRALayer, dequantize: bool) -> None:
    if dequantize and layer.quantization_mode is not None:
        kernel = layer.merged_kernel()
        _detach(layer)
        restore_float(layer, kernel)
    else:
        layer.write_merged()
        _detach(layer)


def _reattach(layer: keras.layers.Layer, attachment: Attachment) -> None:
    layer.__class__ = ADAPTED_CLASSES[type(layer)]
    layer.reattach(attachment)


def _extra_variables(
    model: keras.Model, selection: Selection, config: RandLoRAConfig
) -> dict[str, keras.Variable]:
    """Return the weights trained beside λ and γ, by path.

    Raises:
        ValueError: One of them is quantized.
    """
    adapted = {id(site.layer) for site in selection.adapted}
    trained = {id(site.layer) for site in selection.also_trained}
    extra = {}
    for site in sites(model):
        whole = bool(trained & {id(site.layer), *map(id, site.ancestors)})
        bias = config.train_bias == "all" or (
            config.train_bias == "adapted" and id(site.layer) in adapted
        )
        if whole and _holds_integers(site.layer):
            raise ValueError(
                f"Layer '{site.path}' stands in `also_train` and is quantized as "
                f"'{site.layer.quantization_mode}': its kernel cannot be trained as it "
                "is. Quantize the backbone only (`model.backbone.quantize(...)`), or "
                "leave the layer out."
            )
        for name, variable in named_weights(site.layer).items():
            if whole or (bias and name == "bias"):
                extra[f"{site.path}/{name}"] = variable
    return extra


def _holds_integers(layer: keras.layers.Layer) -> bool:
    """Whether a layer is quantized, and has weights to be."""
    dtypes = [weight.dtype for weight in named_weights(layer).values()]
    return layer.quantization_mode is not None and not all(
        map(keras.backend.is_float_dtype, dtypes)
    )


def _refuse_to_quantize(*args: Any) -> None:
    raise ValueError(
        "The model is adapted by RandLoRA: its kernels cannot be quantized now. "
        "Quantize first, then call `enable_randlora`; or call `merge_randlora(model)`, "
        "then `model.quantize(...)`."
    )


def _checked_train_function(
    model: keras.Model, state: AdaptedState
) -> Callable[..., Any]:
    """Return the model's `make_train_function`, which first looks at the options."""

    def make_train_function(force: bool = False) -> Any:
        if force or model.train_function is None:
            warn_of_large_steps(model, state.config)
            if state.block is None:
                warn_of_unsaved(model, state.variables().values())
        return type(model).make_train_function(model, force)

    return make_train_function


def _trainable_flags(model: keras.Model) -> list[TrainableFlag]:
    layers = [model, *(site.layer for site in sites(model))]
    return [
        TrainableFlag(layer, layer._trainable, [(v, v.trainable) for v in own])
        for layer in layers
        for own in [layer._trainable_variables]
    ]


def set_trainable(flags: list[TrainableFlag]) -> None:
    """Make layers and variables as trainable as `flags` say."""
    for flag in flags:
        flag.layer._trainable = flag.trainable
        for variable, trainable in flag.variables:
            variable.trainable = trainable


def _train_only(model: keras.Model, extra: dict[str, keras.Variable]) -> None:
    """Freeze everything but λ, γ and the extra variables.

    A layer with nothing to train is frozen itself, so that batch normalization
    leaves its statistics alone.
    """
    trained = {id(variable) for variable in extra.values()}
    layers = [model, *(site.layer for site in sites(model))]
    for layer in layers:
        adapter = isinstance(layer, RandLoRAAdapter)
        for variable in layer._trainable_variables:
            variable.trainable = adapter or id(variable) in trained
    for layer in layers:
        variables = layer.variables
        if variables:
            layer._trainable = any(v.trainable for v in variables)


def _remember(model: keras.Model, state: AdaptedState) -> None:
    """Keep the state with the model, and have Keras ask before it acts on it."""
    setattr(model, _STATE, state)
    for site in state.selection.adapted:
        site.layer.randlora.enabled_on = weakref.ref(model)
    for site in sites(model):
        pass_gradients(site.layer)
    # Before it quantizes the first layer.
    model._check_quantize_args = _refuse_to_quantize
    # In `fit` and `train_on_batch`, before the first step.
    model.make_train_function = _checked_train_function(model, state)


def _recovered_state(model: keras.Model) -> AdaptedState | None:
    """Return the state of a model that was built adapted, which it keeps from now on.

    What was trainable before is not known: everything stays as it is, but the adapted
    layers become trainable as plain ones are.
    """
    found = recover(model)
    if found is None:
        return None
    config, selection = found
    adapted = {id(site.layer) for site in selection.adapted}
    flags = [
        flag._replace(variables=[(variable, True) for variable, _ in flag.variables])
        if id(flag.layer) in adapted
        else flag
        for flag in _trainable_flags(model)
    ]
    extra = _extra_variables(model, selection, config)
    state = AdaptedState(config, selection, extra, flags)
    _remember(model, state)
    return state


def _finish(model: keras.Model, state: AdaptedState, models: list[keras.Model]) -> None:
    """Thaw what was trainable before and forget the adaptation, in all models."""
    _forget(model, state.was_trainable)
    for holder in models:
        renew_optimizer(holder)


def _forget(model: keras.Model, flags: list[TrainableFlag]) -> None:
    """Undo what `_remember` and `_train_only` did."""
    set_trainable(flags)
    for site in sites(model):
        restore_rounding(site.layer)
    for name in (_STATE, "_check_quantize_args", "make_train_function"):
        if name in vars(model):
            delattr(model, name)
