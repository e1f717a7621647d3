"""What an adapted layer computes, holds and saves.

In: a plain `Dense` or `EinsumDense` and the options of one layer. Out: the layer with
λ and γ, its product, and what stands of it in a weights file.
"""

from keras_randlora.layers.adapted import (
    ADAPTED_CLASSES,
    Attachment,
    LayerOptions,
    RandLoRAAdapter,
    RandLoRADense,
    RandLoRAEinsumDense,
    RandLoRALayer,
    named_weights,
    own_weights,
    require_supported_mode,
    stable_names,
)
from keras_randlora.layers.quantized import (
    dense_kernel,
    float_policy,
    held_arrays,
    hold,
    kernel_shape,
    restore_float,
    write_kernel,
)
from keras_randlora.layers.straight_through import (
    pass_gradients,
    restore_rounding,
)

__all__ = [
    "ADAPTED_CLASSES",
    "Attachment",
    "LayerOptions",
    "RandLoRAAdapter",
    "RandLoRADense",
    "RandLoRAEinsumDense",
    "RandLoRALayer",
    "dense_kernel",
    "float_policy",
    "held_arrays",
    "hold",
    "kernel_shape",
    "named_weights",
    "own_weights",
    "pass_gradients",
    "require_supported_mode",
    "restore_float",
    "restore_rounding",
    "stable_names",
    "write_kernel",
]
