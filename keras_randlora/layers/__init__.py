"""Adapted layers: computation, variables and saving.

In: a plain `Dense`, `EinsumDense` or convolution, a kind that `register_layer` added,
or a bare weight of a layer, and the options of one layer. Out: the layer with λ and γ,
its product, and its entries in a weights file.
"""

from keras_randlora.layers.adapted import Adaptation, RandLoRALayer, adaptation_of
from keras_randlora.layers.adapter import RandLoRAAdapter
from keras_randlora.layers.convolutions import (
    is_convolution,
    is_convolution_in_groups,
    is_of_patches,
)
from keras_randlora.layers.counts import parameter_count
from keras_randlora.layers.formed import kernels_formed
from keras_randlora.layers.kinds import (
    RandLoRADense,
    RandLoRAEinsumDense,
    adapt_layer,
    adapted_class,
    is_adaptable,
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
    in_use,
    kept,
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
from keras_randlora.layers.weights import (
    HeldWeight,
    LinearWeight,
    adapted_weights,
    held_weights,
    holder_of,
    own_class_of,
)

__all__ = [
    "Adaptation",
    "HeldWeight",
    "LinearWeight",
    "RandLoRAAdapter",
    "RandLoRADense",
    "RandLoRAEinsumDense",
    "RandLoRALayer",
    "adapt_layer",
    "adaptation_of",
    "adapted_class",
    "adapted_weights",
    "dense_kernel",
    "float_policy",
    "held_arrays",
    "held_weights",
    "hold",
    "holder_of",
    "in_use",
    "is_adaptable",
    "is_convolution",
    "is_convolution_in_groups",
    "is_factor",
    "is_lambda",
    "is_linear",
    "is_of_patches",
    "kept",
    "kernel_shape",
    "kernels_formed",
    "kind_name",
    "layout_of",
    "named_weights",
    "own_class_of",
    "parameter_count",
    "pass_gradients",
    "register_layer",
    "require_supported_mode",
    "restore_float",
    "restore_rounding",
    "stable_names",
    "write_kernel",
]
