"""Periods of training: epochs, or numbers of batches."""

from typing import Any

from keras_randlora.tools import positive_integer

EPOCH = "epoch"


class Clock:
    """Counts periods of batches, across epochs and jumps of the index."""

    def __init__(self, every: str | int) -> None:
        self._every = None if every == EPOCH else int(every)
        self._waited = 0
        self._last = -1

    def begin_epoch(self) -> None:
        """Count batches from 0 again."""
        self._last = -1

    def is_due(self, batch: int) -> bool:
        """Whether a period ends with this batch; called once per batch."""
        self._waited += batch - self._last
        self._last = batch
        if self._every is None or self._waited < self._every:
            return False
        self._waited = 0
        return True


def checked_frequency(name: str, value: Any) -> str | int:
    """Return `"epoch"` or a number of batches, or refuse the option."""
    if value == EPOCH:
        return EPOCH
    if isinstance(value, str):
        raise ValueError(
            f"`{name}` must be 'epoch' or a number of batches. Received: "
            f"{name}={value!r}."
        )
    return positive_integer(name, value)
