"""The bytes that a step reads from and writes to large arrays, counted on torch.

Each operation of PyTorch counts the operands and results that lie in arrays larger than
a core's own cache, a view by its part. So a pass over a kernel counts, and one over a
small strip of it, made anew, does not. Views move nothing. Operations are those that
PyTorch runs one by one: XLA fuses some of them and moves less.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# The second-level cache of a core.
CACHE_BYTES = 2**20
_RESERVES = {
    "aten::empty",
    "aten::new_empty",
    "aten::empty_like",
    "aten::empty_strided",
}
_OVERWRITES = {"aten::copy_", "aten::fill_", "aten::zero_"}


def of_step(step: Callable[[], Any], cache_bytes: int = CACHE_BYTES) -> int:
    """Return the bytes that `step` reads and writes.

    Args:
        step: Runs on torch, on a CPU or a GPU.
        cache_bytes: The largest array that is taken as staying in the cache.
    """
    with _Traffic(cache_bytes) as traffic:
        step()
    return traffic.bytes


class _Traffic(TorchDispatchMode):
    def __init__(self, cache_bytes: int) -> None:
        super().__init__()
        self.bytes = 0
        self._cache_bytes = cache_bytes

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        results = operation(*args, **kwargs)
        schema = operation._schema
        if operation.is_view or schema.name in _RESERVES:
            return results
        written = _changed(schema, args, kwargs) if schema.is_mutable else results
        read = args[1:] if schema.name in _OVERWRITES else (args, kwargs)
        self.bytes += sum(map(self._moved, tree_leaves((read, written))))
        return results

    def _moved(self, value: Any) -> int:
        if not isinstance(value, torch.Tensor):
            return 0
        large = value.untyped_storage().nbytes() > self._cache_bytes
        return value.numel() * value.element_size() if large else 0


def _changed(schema: Any, args: Any, kwargs: Any) -> list[Any]:
    """Return the operands that an operation writes to."""
    changed = []
    for number, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            named = kwargs.get(argument.name)
            changed.append(args[number] if number < len(args) else named)
    return changed
