"""What the garbage collector is kept from."""

import contextlib
import gc
from collections.abc import Iterator

# Python 3.12 freezes its few hundred immortal objects itself, whenever it collects. A
# process that has imported Keras has half a million others.
_IMMORTAL = 2000
_QUICK = False


def has_frozen_objects() -> bool:
    """Return whether somebody has called `gc.freeze()`.

    Python counts the frozen objects one by one: 50 ms where Keras is among them.
    """
    return gc.get_freeze_count() > _IMMORTAL


@contextlib.contextmanager
def quick_collection() -> Iterator[None]:
    """Freeze existing objects, so that the `gc.collect()` calls of Keras are cheap.

    Keras collects after each deleted variable: half a second in a large model, for each
    of hundreds of layers. A block within another one changes nothing.
    """
    global _QUICK
    if _QUICK or has_frozen_objects():  # the user's, who keeps what they froze
        yield
        return
    _QUICK = True
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        _QUICK = False
