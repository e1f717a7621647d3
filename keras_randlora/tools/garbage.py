"""What the garbage collector is kept from."""

import gc

# Python 3.12 freezes its few hundred immortal objects itself, whenever it collects. A
# process that has imported Keras has half a million others.
_IMMORTAL = 2000


def has_frozen_objects() -> bool:
    """Return whether somebody has called `gc.freeze()`."""
    return gc.get_freeze_count() > _IMMORTAL
