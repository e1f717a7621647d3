"""A progress bar for work that takes longer than a second."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import keras

Item = TypeVar("Item")
PATIENCE = 1.0  # seconds


def shown(items: Sequence[Item], doing: str, unit: str) -> Iterator[Item]:
    """Yield the items; once a second is over, show how far the work is.

    Nothing is shown where `keras.config.disable_interactive_logging()` was called.

    Args:
        items: What is worked on, one after the other.
        doing: What is done, for the line above the bar, `"Merging"`.
        unit: What an item is, `"layer"`.
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
