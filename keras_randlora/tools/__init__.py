"""Small helpers without knowledge of RandLoRA.

In: arrays, paths, sequences, user input. Out: the same, reshaped, replaced atomically,
shown or checked. Rooms import two as modules: `keras_internals`, the only place that
uses private names of Keras, and `loops`.
"""

from keras_randlora.tools import keras_internals, loops
from keras_randlora.tools.arrays import (
    cast,
    is_ragged,
    is_sparse,
    reshape,
    to_dense,
    to_numpy,
    transpose,
    with_rows,
)
from keras_randlora.tools.atomic import replacing, write_atomically
from keras_randlora.tools.checks import (
    finite_number,
    local_path,
    one_of,
    positive_integer,
    real_number,
    uint32,
)
from keras_randlora.tools.embeddings import is_reversible
from keras_randlora.tools.markup import html_table
from keras_randlora.tools.progress import shown
from keras_randlora.tools.seeds import random_states, set_random_states
from keras_randlora.tools.sizes import bytes_of, in_words, item_size
from keras_randlora.tools.tracing import in_graph, is_traced, traced_apart

__all__ = [
    "bytes_of",
    "cast",
    "finite_number",
    "html_table",
    "in_graph",
    "in_words",
    "is_ragged",
    "is_reversible",
    "is_sparse",
    "is_traced",
    "item_size",
    "keras_internals",
    "local_path",
    "loops",
    "one_of",
    "positive_integer",
    "random_states",
    "real_number",
    "replacing",
    "reshape",
    "set_random_states",
    "shown",
    "to_dense",
    "to_numpy",
    "traced_apart",
    "transpose",
    "uint32",
    "with_rows",
    "write_atomically",
]
