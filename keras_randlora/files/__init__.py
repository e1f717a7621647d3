"""Adapters, optimizers and mixtures of adapters on disk.

In: an adapted model, a path, an address on a hub. Out: files, written atomically, or
the model with their content.
"""

from keras_randlora.files.adapter import (
    load_adapter,
    save_adapter,
    save_adapter_of,
)
from keras_randlora.files.adapter_file import (
    adapter_metadata,
    checked_suffix,
    read_adapter,
    read_moment,
)
from keras_randlora.files.combine import (
    PathLike,
    merge_adapters,
)
from keras_randlora.files.hub import fetched_file, fetched_folder
from keras_randlora.files.metadata import metadata_of
from keras_randlora.files.moments import (
    Moment,
    Rule,
    SavedAdapter,
    matching,
)
from keras_randlora.files.optimizer import (
    load_optimizer,
    save_optimizer,
)
from keras_randlora.files.upload import upload_adapter
from keras_randlora.files.weights import (
    check_adapter,
    get_adapter,
    require_finite,
    set_adapter,
)

__all__ = [
    "Moment",
    "PathLike",
    "Rule",
    "SavedAdapter",
    "adapter_metadata",
    "check_adapter",
    "checked_suffix",
    "fetched_file",
    "fetched_folder",
    "get_adapter",
    "load_adapter",
    "load_optimizer",
    "matching",
    "merge_adapters",
    "metadata_of",
    "read_adapter",
    "read_moment",
    "require_finite",
    "save_adapter",
    "save_adapter_of",
    "save_optimizer",
    "set_adapter",
    "upload_adapter",
]
