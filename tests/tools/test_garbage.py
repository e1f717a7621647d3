"""Whether somebody has kept objects from the garbage collector."""

import gc

import pytest

from keras_randlora.tools import has_frozen_objects

pytestmark = pytest.mark.any_backend


def test_frozen_objects_are_those_that_somebody_froze():
    assert has_frozen_objects()  # conftest.py did
    gc.unfreeze()
    gc.collect()  # Python 3.12 freezes immortal objects
    assert not has_frozen_objects()
    gc.freeze()
    assert has_frozen_objects()
