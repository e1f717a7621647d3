"""Progress of an export: one line per stage."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


def speaker(format: str, verbose: bool) -> Say:
    """Return the function that prints the stages of writing a format."""
    if not verbose:
        return lambda stage: None
    return lambda stage: print(f"Writing '{format}': {stage} …", flush=True)
