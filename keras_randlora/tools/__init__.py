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
from keras_randlora.tools.embeddings import is_hubs_own, is_reversible
from keras_randlora.tools.garbage import has_frozen_objects, quick_collection
from keras_randlora.tools.hosts import Hosts, hosts_of
from keras_randlora.tools.markup import html_table
from keras_randlora.tools.memory import free_bytes
from keras_randlora.tools.progress import shown
from keras_randlora.tools.seeds import random_states, set_random_states
from keras_randlora.tools.shards import (
    Parts,
    assign,
    copy_of,
    corners,
    here,
    is_divided,
    to_numpy,
    undistributed,
)
from keras_randlora.tools.sizes import bytes_of, in_words, item_size
from keras_randlora.tools.tracing import in_graph, is_traced, traced_apart

__all__ = [
    "Hosts",
    "Parts",
    "assign",
    "bytes_of",
    "cast",
    "copy_of",
    "corners",
    "finite_number",
    "free_bytes",
    "has_frozen_objects",
    "here",
    "hosts_of",
    "html_table",
    "in_graph",
    "in_words",
    "is_divided",
    "is_ragged",
    "is_hubs_own",
    "is_reversible",
    "is_sparse",
    "is_traced",
    "item_size",
    "keras_internals",
    "local_path",
    "loops",
    "one_of",
    "positive_integer",
    "quick_collection",
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
    "undistributed",
    "with_rows",
    "write_atomically",
]
