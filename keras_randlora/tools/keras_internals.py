"""What Keras does not promise: every private name that this package touches.

No other module reads or sets an underscored attribute of an object that it does not
own (`tests/test_architecture.py`), and `tests/tools/test_keras_internals.py` runs each
function on the installed Keras. Importing this module checks the names that classes
have, and fails with one sentence where one is missing.

| name | of | relied on for |
|---|---|---|
| `_kernel` | `Dense`, `EinsumDense` | the variable behind the property `kernel` |
| `_trainable` | `Layer` | a layer's own flag |
| `_trainable_variables`, `_non_trainable_variables` | `Layer` | its own variables |
| `_layers`, `_flatten_layers` | `Layer` | children, and all layers below |
| `_tracker` | `Layer`, `Optimizer` | state of what is built already |
| `_track_variables` | `Layer` on torch | `nn.Module` parameters after a change |
| `_parent_path`, `_open_name_scope` | `Layer` | paths of variables added later |
| `_check_quantize_args` | `Layer` | asked before the first layer is quantized |
| `_remat_mode`, `_loss_ids` | `Layer` | rematerialized calls |
| `_autocast`, `_layout` | `Variable` | conversion on reading; sharding |
| `_layout_map` | `ModelParallel` | where experts lie |
| `_version` | `torch.Tensor` | noticing that a tensor is written to |
| `_current_level` | `torch.autograd.forward_ad` | whether forward mode is on |
| `_are_functorch_transforms_active` | `torch._C` | whether `torch.func` is at work |
| `_distribute_strategy` | `Model` on TensorFlow | the strategy it was built under |
| `gradient_registry._registry` | `ops` of TensorFlow | gradients that hold no graph |
| `_variables`, `_iterations`, `_learning_rate` | `Optimizer` | forgetting its state |
| `_trainable_variables`, `_trainable_variables_indices` | `Optimizer` | likewise |
| `_model_variables_moving_average` | `Optimizer` | averages that follow an adapter |
| `_accumulated_gradients`, `_momentums` of `ScheduleFreeAdamW` | likewise | likewise |
| `_should_use_adamw` | `Muon` | which variables it treats as matrices |
| `_is_quantized`, `_embeddings` | quantized layers | restoring and counting them |
| `_int4_block_size`, `_int4_unpacked_column_size` | likewise | how int4 is packed |
| `_orig_input_dim`, `_orig_output_dim` | int4 `Dense` | likewise |
| `_adjust_scale_for_dequant` | int8 `EinsumDense` | the axes of its scale |
| `_num_heads`, `_use_fused_attention_op` | attention layers | the memory of a step |
| `global_state`, `stateless_scope` | `keras.src.backend.common` | around a call |
| `_jit_is_onnx_log_enabled` and `_jit_set_…` | `torch._C` | a quiet ONNX tracer |
| `get_input_signature` | `keras.src.export.export_utils` | what exporters feed |

Each was read in the source of Keras 3.15.0 and 3.15.1. Keras 3.16.0.dev2026102704 has
all but the attributes of quantized layers.
"""

from __future__ import annotations

import contextlib
import functools
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

# What Keras sets up around a call, and what is gone in the backward pass.
CALL_SURROUNDINGS = ("current_call_ctx", "autocast_scope")
_UNINITIALIZED = "uninitialized_variables"
_OF_LAYERS = ("_check_quantize_args", "_flatten_layers", "_open_name_scope")


def _require_names() -> None:
    """Check what can be checked without building a layer."""
    missing = [name for name in _OF_LAYERS if not hasattr(keras.layers.Layer, name)]
    if missing:
        raise ImportError(
            f"keras_randlora relies on `keras.layers.Layer.{missing[0]}`, which Keras "
            f"{keras.__version__} does not have. Install a version of keras_randlora "
            "that knows this Keras, or an older Keras."
        )


_require_names()


# Layers


def kernel_variable(layer: keras.layers.Layer) -> keras.Variable:
    """Return the variable that holds a layer's own kernel, packed if it is int4.

    Transposed convolutions have it as `kernel`, which an adapted class reads otherwise.
    """
    own = vars(layer)
    return own["_kernel"] if "_kernel" in own else own["kernel"]


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return the variables that a layer holds itself, not through children."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def own_trainable_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return the variables that a layer holds itself as trainable ones.

    They stay in this list when their own flag is set to `False`.
    """
    return list(layer._trainable_variables)


def own_flag(layer: keras.layers.Layer) -> bool:
    """Return a layer's own `trainable`, whatever a property makes of it."""
    return layer._trainable


def set_own_flag(layer: keras.layers.Layer, trainable: bool) -> None:
    """Set a layer's own `trainable`, and that of nothing below it."""
    layer._trainable = trainable


def children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the layers that a layer holds itself."""
    return list(layer._layers)


def sort_children(
    layer: keras.layers.Layer, place: Callable[[keras.layers.Layer], int]
) -> None:
    """Order the layers that a layer holds itself; equal places stay as they are."""
    layer._layers.sort(key=place)


def layers_below(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return a model and every layer below it."""
    return list(model._flatten_layers())


def is_complete(model: Any) -> bool:
    """Return whether the constructor of a model has come as far as its layers."""
    return hasattr(model, "_layers")


def writes_its_layers(model: keras.Model) -> bool:
    """Return whether a model's configuration holds those of its layers."""
    from keras.src.models.functional import Functional

    writers = (Functional.get_config, keras.Sequential.get_config)
    return type(model).get_config in writers


@contextlib.contextmanager
def unlocked(layer: keras.layers.Layer) -> Iterator[None]:
    """Let state be added to a built layer for the time of the block."""
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


def untrack(layer: keras.layers.Layer, child: Any) -> None:
    """Take a child or a variable off a layer's lists; call it within `unlocked`."""
    layer._tracker.untrack(child)


def list_variables_anew(layer: keras.layers.Layer) -> None:
    """Renew a layer's `nn.Module` parameters on torch; nothing elsewhere."""
    if keras.backend.backend() == "torch":
        layer._track_variables()


def set_parent_path(layer: keras.layers.Layer, path: str) -> None:
    """Let the path of an unbuilt layer begin with `path`."""
    layer._parent_path = path


def add_kernel(layer: keras.layers.Layer, shape: tuple[int, ...]) -> None:
    """Give a layer a kernel of floating-point zeros, first among its variables."""
    with layer._open_name_scope():
        layer._kernel = layer.add_weight(
            name="kernel",
            shape=shape,
            initializer="zeros",
            regularizer=layer.kernel_regularizer,
        )
    layer._trainable_variables.sort(key=lambda variable: variable is not layer._kernel)


# Variables


def set_autocast(variable: keras.Variable, autocast: bool) -> None:
    """Set whether reading a variable converts it under a mixed policy."""
    variable._autocast = autocast


def autocast(tensor: Any) -> Any:
    """Convert a tensor as reading a variable here would."""
    scope = surroundings()["autocast_scope"]
    return tensor if scope is None else scope.maybe_cast(tensor)


def version_of(tensor: Any) -> int:
    """Return a number that changes when a tensor of torch is written to."""
    return tensor._version


def in_forward_mode() -> bool:
    """Return whether torch computes tangents now, as in `torch.func.jvp`."""
    from torch.autograd import forward_ad

    return forward_ad._current_level >= 0


def is_transformed() -> bool:
    """Return whether a transform of `torch.func` or forward mode is at work."""
    import torch

    return in_forward_mode() or torch._C._are_functorch_transforms_active()


def replace_gradient(outputs: Any, gradients: Callable[..., Sequence[Any]]) -> None:
    """Give what `tf.custom_gradient` returned in a graph a gradient without the graph.

    TensorFlow keeps the one that it registers for ever, and with it the graph.

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
    """Return whether a `keras.distribution` lays the variable out over devices."""
    return variable._layout is not None


def layout_map_of(distribution: Any) -> Any:
    """Return the layout map of a `ModelParallel`, `None` of another distribution."""
    return getattr(distribution, "_layout_map", None)


def strategy_of(model: keras.Model) -> Any:
    """Return the `tf.distribute.Strategy` a model was built under, or `None`."""
    return model._distribute_strategy


# Quantized layers


def mark_as_float(layer: keras.layers.Layer) -> None:
    """Let a layer that was quantized be quantized again."""
    layer._is_quantized = False


def int4_block(layer: keras.layers.Layer) -> int | None:
    """Return the rows that share a scale, `None` where all of them do."""
    block = layer._int4_block_size
    return None if block in (None, -1) else block


def int4_columns(layer: keras.layers.Layer) -> int:
    """Return the columns of an int4 kernel, unpacked."""
    if isinstance(layer, keras.layers.EinsumDense):
        return layer._int4_unpacked_column_size
    return layer._orig_output_dim


def int4_kernel_shape(layer: keras.layers.Layer) -> tuple[int, ...]:
    """Return the shape of an int4 kernel in floating point."""
    if isinstance(layer, keras.layers.EinsumDense):
        return tuple(layer.original_kernel_shape)
    return layer._orig_input_dim, layer._orig_output_dim


def scale_for_kernel(layer: keras.layers.Layer) -> Callable[[Any], Any] | None:
    """Return what brings an int8 kernel's scale to its axes, `None` if it has them."""
    if not isinstance(layer, keras.layers.EinsumDense):
        return None
    # Gradients live longer than layers: none may hold its own, nor a list of its own.
    axes = {k: list(v or ()) for k, v in vars(layer).items() if k.endswith("_axes")}
    method = type(layer)._adjust_scale_for_dequant
    return functools.partial(method, types.SimpleNamespace(**axes))


def rounded_axis(layer: keras.layers.Layer) -> Any:
    """Return the axes of a layer's input over which its rounding takes one scale."""
    if isinstance(layer, keras.layers.EinsumDense):
        return layer.quantization_axis
    return -1


def check_before_quantizing(check: Callable[[Any], None]) -> None:
    """Let `check(model)` run before a model's `quantize` changes the first layer.

    Keras binds `quantize` to each instance when it is made, and asks the class's
    `_check_quantize_args` when it is called.
    """
    asked = keras.Model._check_quantize_args
    if hasattr(asked, "guarded"):
        return

    @functools.wraps(asked)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> None:
        check(self)
        asked(self, *args, **kwargs)

    guarded.guarded = True  # type: ignore[attr-defined]
    keras.Model._check_quantize_args = guarded


def embeddings_variable(layer: keras.layers.Layer) -> keras.Variable:
    """Return the variable behind the property `embeddings`."""
    return layer._embeddings


# Attention layers of Keras and keras-hub


def heads_of(layer: keras.layers.Layer) -> int | None:
    """Return the query heads of an attention layer, `None` if it does not tell."""
    for name in ("num_query_heads", "num_heads", "_num_heads"):
        if isinstance(found := getattr(layer, name, None), int):
            return found
    return None


def asks_for_fused_attention(layer: keras.layers.Layer) -> Callable[[], bool] | None:
    """Return what tells whether an attention layer keeps no scores, or `None`."""
    return getattr(layer, "_use_fused_attention_op", None)


# Rematerialized calls


def set_rematerialized(
    layer: keras.layers.Layer, call: Callable[..., Any] | None
) -> None:
    """Let Keras run a layer's call through `call(original, *args)`; `None` ends it."""
    # Keras asks `rematerialized_call` of a layer with a mode.
    layer._remat_mode = None if call is None else "full"
    if call is None:
        vars(layer).pop("rematerialized_call", None)
    else:
        layer.rematerialized_call = call


def forget_losses(layer: keras.layers.Layer) -> None:
    """Let the layers below a layer have added no losses."""
    for child in layer._flatten_layers(include_self=False):
        child._loss_ids.clear()


def known_values() -> dict[int, Any]:
    """Return what the surrounding stateless scope knows of variables, by `id`."""
    from keras.src.backend.common.stateless_scope import get_stateless_scope

    scope = get_stateless_scope()
    return dict(scope.state_mapping) if scope else {}


def in_stateless_scope() -> bool:
    """Return whether Keras runs a function of given values of variables."""
    from keras.src.backend.common.stateless_scope import in_stateless_scope

    return in_stateless_scope()


def surroundings() -> dict[str, Any]:
    """Return what Keras has set up around the call that runs."""
    from keras.src.backend.common import global_state

    get = global_state.get_global_attribute
    return {name: get(name) for name in CALL_SURROUNDINGS}


@contextlib.contextmanager
def within(around: Mapping[str, Any]) -> Iterator[None]:
    """Set up again what `surroundings` returned."""
    from keras.src.backend.common import global_state

    before = surroundings()
    for name, value in around.items():
        global_state.set_global_attribute(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            global_state.set_global_attribute(name, value)


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Create variables that never get values.

    Keras would fill them in at the end of the next stateless scope, the one of any
    symbolic call: they are taken off its list.
    """
    from keras.src.backend.common import global_state

    before = list(global_state.get_global_attribute(_UNINITIALIZED) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute(_UNINITIALIZED, before)


# Optimizers


def spare_from_muon(is_spared: Callable[[keras.Variable], bool]) -> None:
    """Let Muon update variables for which `is_spared(variable)` as AdamW does.

    Their rows and columns are no axes of a matrix product, whose steps it
    orthogonalizes.
    """
    asked = keras.optimizers.Muon._should_use_adamw
    if hasattr(asked, "guarded"):
        return

    @functools.wraps(asked)
    def guarded(self: Any, variable: keras.Variable) -> bool:
        return is_spared(variable) or asked(self, variable)

    guarded.guarded = True  # type: ignore[attr-defined]
    keras.optimizers.Muon._should_use_adamw = guarded


def rate_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the learning rates that are variables, of wrapped optimizers too."""
    own = optimizer._learning_rate
    found = [own] if isinstance(own, keras.Variable) else []
    for inner in _wrapped(optimizer):
        found += rate_variables(inner)
    return found


def seed_states(model: keras.layers.Layer) -> list[keras.Variable]:
    """Return the states of a model's random generators, which calls change."""
    weights = {id(weight) for weight in model.weights}
    return [v for v in model.non_trainable_variables if id(v) not in weights]


def schedule_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """Return the learning-rate schedule of an optimizer, `None` without one."""
    rate = optimizer._learning_rate
    is_schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    return rate if is_schedule else None


def averages_of(
    optimizer: keras.optimizers.Optimizer,
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Return trained variables and what an optimizer averages of their values.

    That is the mean with `use_ema=True`, and the sequence that `ScheduleFreeAdamW`
    averages, in which its `momentum` is.
    """
    found = []
    for inner in _wrapped(optimizer):
        found += averages_of(inner)
    held = []
    if optimizer.built and optimizer.use_ema:
        held.append(getattr(optimizer, "_model_variables_moving_average", []))
    if optimizer.built and isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW):
        held.append(optimizer._momentums)
    for averages in held:
        pairs = zip(optimizer._trainable_variables, averages, strict=True)
        found += [(variable, mean) for variable, mean in pairs if mean is not None]
    return found


def accumulators_of(
    optimizer: keras.optimizers.Optimizer,
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Return trained variables and what an optimizer sums their gradients in."""
    found = []
    for inner in _wrapped(optimizer):
        found += accumulators_of(inner)
    if optimizer.built and optimizer.gradient_accumulation_steps:
        sums = optimizer._accumulated_gradients
        found += zip(optimizer._trainable_variables, sums, strict=True)
    return found


def _wrapped(
    optimizer: keras.optimizers.Optimizer,
) -> Sequence[keras.optimizers.Optimizer]:
    """Return the optimizers that another one hands the work to."""
    one = getattr(optimizer, "inner_optimizer", None)
    return [one] if one else getattr(optimizer, "optimizers", ())


def forget_state(optimizer: keras.optimizers.Optimizer) -> None:
    """Make an optimizer what it was before it was built, but for its learning rate.

    It is not made anew from its configuration: a schedule of one's own, unregistered,
    or a callable rate cannot be.
    """
    for inner in _wrapped(optimizer):
        forget_state(inner)
    if not optimizer.built:
        return
    kept = {id(optimizer._iterations), id(optimizer._learning_rate)}
    for variable in list(optimizer._variables):
        if id(variable) not in kept:
            untrack(optimizer, variable)
    optimizer._trainable_variables = []
    optimizer._trainable_variables_indices = {}
    optimizer.built = False
    optimizer._iterations.assign(0)


# Exports


def input_signature(model: keras.Model) -> Sequence[Any]:
    """Return the arguments of a built model as nested `keras.InputSpec`s."""
    from keras.src.export.export_utils import get_input_signature

    return get_input_signature(model)


@contextlib.contextmanager
def quiet_tracer() -> Iterator[None]:
    """Keep torch's ONNX tracer from printing the whole graph where it fails."""
    import torch

    before = torch._C._jit_is_onnx_log_enabled()
    torch._C._jit_set_onnx_log_enabled(False)
    try:
        yield
    finally:
        torch._C._jit_set_onnx_log_enabled(before)
