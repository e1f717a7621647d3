"""A bar for long work, and nothing for short work."""

import keras
import numpy as np
import pytest
from drawn import draw_b

import keras_randlora as kr
from keras_randlora.bases import BasisSpec
from keras_randlora.tools import progress


@pytest.fixture
def slow(monkeypatch):
    """Make each look at the clock half a second later than the one before."""
    now = iter(np.arange(0.0, 1e6, 0.5))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))


def test_short_work_is_silent(capsys):
    assert list(progress.shown("abc", "Merging", "letter")) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""


def test_long_work_shows_a_bar_that_ends_full(slow, capsys):
    assert list(progress.shown(range(9), "Merging", "layer")) == list(range(9))
    out = capsys.readouterr().out
    assert out.startswith("Merging …\n")
    assert "9/9" in out and "layer" in out


def test_nothing_is_shown_without_interactive_logging(slow, capsys):
    keras.config.disable_interactive_logging()
    try:
        assert list(progress.shown(range(9), "Merging", "layer")) == list(range(9))
    finally:
        keras.config.enable_interactive_logging()
    assert capsys.readouterr().out == ""


def test_drawn_bases_and_merged_layers_are_counted(slow, capsys):
    draw_b(BasisSpec("uniform", None, 0), 100, 4096)
    layers = [keras.layers.Dense(4, name=f"d{i}") for i in range(5)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    kr.enable_randlora(model, rank=2, targets="all-linear")
    kr.merge_randlora(model)
    out = capsys.readouterr().out
    for doing in ("Drawing the bases …", "Adapting …", "Merging …"):
        assert doing in out
    assert out.count("5/5") == 2
