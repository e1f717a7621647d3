"""Small helpers without knowledge of RandLoRA.

In: arrays, paths, sequences. Out: the same, reshaped, replaced whole, or shown.
"""

from keras_randlora.tools.arrays import (
    cast,
    reshape,
    transpose,
)
from keras_randlora.tools.atomic import (
    replacing,
    write_atomically,
)
from keras_randlora.tools.markup import (
    html_table,
)
from keras_randlora.tools.progress import (
    shown,
)
from keras_randlora.tools.sizes import (
    bytes_of,
    in_words,
    item_size,
)

__all__ = [
    "bytes_of",
    "cast",
    "html_table",
    "in_words",
    "item_size",
    "replacing",
    "reshape",
    "shown",
    "transpose",
    "write_atomically",
]
