"""What an adapted layer computes, holds and saves.

In: a plain `Dense` or `EinsumDense`, or a kind that `register_layer` added, and the
options of one layer. Out: the layer with λ and γ, its product, and what stands of it in
a weights file.
"""

from keras_randlora.layers.adapted import Adaptation, RandLoRALayer, adaptation_of
from keras_randlora.layers.adapter import RandLoRAAdapter
from keras_randlora.layers.counts import parameter_count
from keras_randlora.layers.kinds import (
    RandLoRADense,
    RandLoRAEinsumDense,
    adapt_layer,
    adapted_class,
    is_linear,
    kind_name,
    layout_of,
    register_layer,
)
from keras_randlora.layers.quantized import (
    dense_kernel,
    float_policy,
    held_arrays,
    hold,
    kernel_shape,
    require_supported_mode,
    restore_float,
    write_kernel,
)
from keras_randlora.layers.straight_through import pass_gradients, restore_rounding
from keras_randlora.layers.variable_names import (
    is_factor,
    is_lambda,
    named_weights,
    stable_names,
)

__all__ = [
    "Adaptation",
    "RandLoRAAdapter",
    "RandLoRADense",
    "RandLoRAEinsumDense",
    "RandLoRALayer",
    "adapt_layer",
    "adaptation_of",
    "adapted_class",
    "dense_kernel",
    "float_policy",
    "held_arrays",
    "hold",
    "is_factor",
    "is_lambda",
    "is_linear",
    "kernel_shape",
    "kind_name",
    "layout_of",
    "named_weights",
    "parameter_count",
    "pass_gradients",
    "register_layer",
    "require_supported_mode",
    "restore_float",
    "restore_rounding",
    "stable_names",
    "write_kernel",
]
