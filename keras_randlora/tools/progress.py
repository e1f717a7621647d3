"""A progress bar for work that takes longer than a second."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import keras

Item = TypeVar("Item")
PATIENCE = 1.0  # seconds


def shown(items: Sequence[Item], doing: str, unit: str) -> Iterator[Item]:
    """Yield the items; show a progress bar after one second.

    Nothing is shown after `keras.config.disable_interactive_logging()`.

    Args:
        items: The items to process, one after the other.
        doing: The line above the bar, such as `"Merging"`.
        unit: The name of an item, such as `"layer"`.
    """
    bar = keras.utils.Progbar(len(items), unit_name=unit)
    started = time.monotonic()
    visible = False
    for done, item in enumerate(items):
        if visible:
            bar.update(done)
        elif time.monotonic() - started > PATIENCE:
            visible = keras.config.is_interactive_logging_enabled()
            if visible:
                print(f"{doing} …", flush=True)
        yield item
    if visible:
        bar.update(len(items))
