"""Access to private names of Keras and the backends, all in one place.

No other module reads or sets an underscored attribute of an object that it does not
own (`tests/test_architecture.py`), and `tests/tools/test_keras_internals.py` runs each
function on the installed Keras. `reliances` lists each name, what it is relied on for
and in which versions of Keras. Importing this package raises an error if one is
missing.
"""

from __future__ import annotations

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
    has_called_its_layers,
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
    KERNEL_NAMES,
    Packing,
    check_before_quantizing,
    embeddings_variable,
    forget_quantize_options,
    has_int4_blocks,
    int4_packing,
    mark_as_float,
    quantize_options,
    rounding_of,
    scale_for_kernel,
)
from keras_randlora.tools.keras_internals.reliances import require as _require
from keras_randlora.tools.keras_internals.reliances import (
    version_numbers,
    version_of_keras,
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
    "KERNEL_NAMES",
    "Packing",
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
    "forget_quantize_options",
    "forget_state",
    "has_int4_blocks",
    "has_layout",
    "heads_of",
    "held_as",
    "in_forward_mode",
    "in_stateless_scope",
    "input_signature",
    "int4_packing",
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
    "quantize_options",
    "quiet_tracer",
    "rate_variables",
    "replace_gradient",
    "rounding_of",
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
    "version_numbers",
    "version_of",
    "version_of_keras",
    "within",
    "without_values",
    "writes_its_layers",
    "has_called_its_layers",
]

_require()
