"""Access to private names of Keras and the backends, all in one place.

No other module reads or sets an underscored attribute of an object that it does not own
(`tests/test_architecture.py`), and `tests/tools/test_keras_internals.py` runs each
function on the installed Keras. Importing this package checks the names of classes and
raises an error if one is missing.

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
| `global_state.client` | `jax._src.distributed` | agreements between processes |
| `_value` | `Variable` on JAX | an array in place of one that spans hosts |

All are in the source of Keras 3.15.0 and 3.15.1. Keras 3.16.0.dev2026102704 has all but
the attributes of quantized layers.
"""

from __future__ import annotations

import keras

from keras_randlora.tools.keras_internals.calls import (
    CALL_SURROUNDINGS,
    forget_losses,
    in_stateless_scope,
    input_signature,
    known_values,
    quiet_tracer,
    set_rematerialized,
    surroundings,
    within,
    without_values,
)
from keras_randlora.tools.keras_internals.layers import (
    add_kernel,
    asks_for_fused_attention,
    children,
    heads_of,
    is_complete,
    kernel_variable,
    layers_below,
    list_variables_anew,
    own_flag,
    own_trainable_variables,
    own_variables,
    set_own_flag,
    set_parent_path,
    sort_children,
    unlocked,
    untrack,
    writes_its_layers,
)
from keras_randlora.tools.keras_internals.optimizers import (
    accumulators_of,
    averages_of,
    forget_state,
    rate_variables,
    schedule_of,
    seed_states,
    spare_from_muon,
)
from keras_randlora.tools.keras_internals.quantized import (
    check_before_quantizing,
    embeddings_variable,
    int4_block,
    int4_columns,
    int4_kernel_shape,
    mark_as_float,
    rounded_axis,
    scale_for_kernel,
)
from keras_randlora.tools.keras_internals.runtime import coordinator
from keras_randlora.tools.keras_internals.variables import (
    autocast,
    has_layout,
    held_as,
    in_forward_mode,
    is_transformed,
    layout_map_of,
    replace_gradient,
    set_autocast,
    strategy_of,
    version_of,
)

__all__ = [
    "CALL_SURROUNDINGS",
    "accumulators_of",
    "add_kernel",
    "asks_for_fused_attention",
    "autocast",
    "averages_of",
    "check_before_quantizing",
    "children",
    "coordinator",
    "embeddings_variable",
    "forget_losses",
    "forget_state",
    "has_layout",
    "heads_of",
    "held_as",
    "in_forward_mode",
    "in_stateless_scope",
    "input_signature",
    "int4_block",
    "int4_columns",
    "int4_kernel_shape",
    "is_complete",
    "is_transformed",
    "kernel_variable",
    "known_values",
    "layers_below",
    "layout_map_of",
    "list_variables_anew",
    "mark_as_float",
    "own_flag",
    "own_trainable_variables",
    "own_variables",
    "quiet_tracer",
    "rate_variables",
    "replace_gradient",
    "rounded_axis",
    "scale_for_kernel",
    "schedule_of",
    "seed_states",
    "set_autocast",
    "set_own_flag",
    "set_parent_path",
    "set_rematerialized",
    "sort_children",
    "spare_from_muon",
    "strategy_of",
    "surroundings",
    "unlocked",
    "untrack",
    "version_of",
    "within",
    "without_values",
    "writes_its_layers",
]

_OF_LAYERS = ("_check_quantize_args", "_flatten_layers", "_open_name_scope")


def _require_names() -> None:
    """Check the names that exist without building a layer."""
    missing = [name for name in _OF_LAYERS if not hasattr(keras.layers.Layer, name)]
    if missing:
        raise ImportError(
            f"keras_randlora relies on `keras.layers.Layer.{missing[0]}`, which Keras "
            f"{keras.__version__} does not have. Install a version of keras_randlora "
            "that knows this Keras, or an older Keras."
        )


_require_names()
