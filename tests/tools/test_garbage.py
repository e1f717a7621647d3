"""What the garbage collector is kept from."""

import gc

import pytest

from keras_randlora.tools import has_frozen_objects, quick_collection

pytestmark = [pytest.mark.any_backend, pytest.mark.usefixtures("nothing_frozen")]


def test_frozen_objects_are_those_that_somebody_froze():
    gc.collect()  # Python 3.12 freezes immortal objects
    assert not has_frozen_objects()
    gc.freeze()
    assert has_frozen_objects()


def test_objects_are_frozen_until_the_outermost_block_ends():
    with quick_collection():
        with quick_collection():
            assert has_frozen_objects()
        assert has_frozen_objects()
    assert not has_frozen_objects()


def test_a_block_that_fails_leaves_nothing_frozen():
    with pytest.raises(ZeroDivisionError), quick_collection():
        raise ZeroDivisionError
    assert not has_frozen_objects()
    with quick_collection():
        assert has_frozen_objects()


def test_what_the_user_froze_stays_frozen():
    gc.freeze()
    with quick_collection():
        pass
    assert has_frozen_objects()
