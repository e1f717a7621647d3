"""A new basis with four levels, two bits per entry.

python examples/guides/new_basis.py
"""

# --8<-- [start:basis]
import keras
import numpy as np
from keras import ops

import keras_randlora as kr
from keras_randlora.bases import Distribution

STEP = float(np.float32(5**-0.5))  # (1 + 9) / 2 levels squared: unit variance


def four_levels(words, spec):
    """Map the two highest bits of each word to -3, -1, 1, 3 steps."""
    odd = 2 * (words >> 30).astype(np.int32) - 3
    return odd.astype(np.float32) * np.float32(STEP)


def four_levels_ops(words, spec):
    """Do the same with `keras.ops`, on int32 tensors that hold the words' bits."""
    top = ops.bitwise_and(ops.right_shift(words, 30), 3)
    return ops.multiply(ops.cast(2 * top - 3, "float32"), STEP)


levels = Distribution(
    dtype="float32",
    default_sparsity=lambda larger_side: None,  # no zeros to count
    entries=four_levels,
    entries_ops=four_levels_ops,
)
kr.register_basis("four_levels", levels)
# --8<-- [end:basis]

# --8<-- [start:use]
model = keras.Sequential([keras.Input((48,)), keras.layers.Dense(64, name="dense")])
kr.enable_randlora(model, rank=4, targets="dense", basis="four_levels")
# --8<-- [end:use]
