"""What the device says about its memory."""

import os
from pathlib import Path

import pytest

from keras_randlora.tools import free_bytes

IS_LINUX = Path("/proc/meminfo").exists()


@pytest.mark.skipif(
    not IS_LINUX or os.environ.get("RANDLORA_REQUIRE_GPU") == "1",
    reason="the memory of a Linux machine without a GPU",
)
def test_a_machine_says_what_is_available():
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = free_bytes()
    assert free % 1024 == 0
    assert whole / 100 < free < whole


@pytest.mark.any_backend
def test_another_system_says_nothing(monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert free_bytes() is None
