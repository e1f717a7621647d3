"""Pictures: that they are drawn, and what is refused; how they look, people judge."""

import dataclasses
import sys

import matplotlib.axes
import numpy as np
import pytest

from keras_randlora import analysis

pytestmark = pytest.mark.any_backend

PNG = b"\x89PNG"
PLANE = analysis.LossPlane(
    names=("LoRA", "RandLoRA", "full"),
    corners=np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]]),
    x=np.linspace(-1, 3, 4),
    y=np.linspace(-1, 2, 3),
    losses=np.arange(12.0).reshape(3, 4),
    corner_losses=np.array([1.0, 2.0, 3.0]),
)


def test_pictures_are_drawn(tmp_path):
    spectra = {"LoRA": [2.0, 1.0, 0.0], "RandLoRA": [2.0, 1.5, 1.0]}
    analysis.plot_spectra(spectra, tmp_path / "spectra.png", title="Spectra")
    series = {"LoRA": {"a": 0.9, "b": 0.8}, "RandLoRA": {"a": 1.0, "b": 0.9}}
    analysis.plot_cka(series, tmp_path / "cka.png")
    analysis.plot_loss_plane(PLANE, tmp_path / "plane.png")
    for file in tmp_path.iterdir():
        assert file.read_bytes().startswith(PNG)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("steep", [0.0, 100.0])
def test_a_steep_corner_does_not_take_all_the_colours(steep, tmp_path, monkeypatch):
    drawn = []
    contourf = matplotlib.axes.Axes.contourf
    monkeypatch.setattr(
        matplotlib.axes.Axes,
        "contourf",
        lambda *args, **kwargs: drawn.append(contourf(*args, **kwargs)) or drawn[0],
    )
    losses = np.zeros((3, 4))  # flat, or but for a corner
    losses[1, 1], losses[0, 0] = min(steep, 1.0), steep
    losses += np.linspace(0, steep / 100, 4)
    plane = dataclasses.replace(PLANE, losses=losses)
    analysis.plot_loss_plane(plane, tmp_path / "plane.png")
    levels = drawn[0].levels
    assert np.isfinite(levels).all() and np.all(np.diff(levels) > 0)
    assert not steep or levels.max() < 3


def test_a_plane_is_a_page_that_needs_no_network(tmp_path):
    pytest.importorskip("plotly")
    analysis.plot_loss_plane(PLANE, tmp_path / "plane.html", title="Through three")
    page = (tmp_path / "plane.html").read_text("utf-8")
    assert "Through three" in page and "RandLoRA" in page
    assert '<script src="http' not in page


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one of .png, .svg, .pdf. Received: 'x.jpg'"):
        analysis.plot_spectra({"a": [1.0]}, "x.jpg")
    with pytest.raises(ValueError, match="no spectrum"):
        analysis.plot_spectra({}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="the same layers"):
        analysis.plot_cka({"a": {"x": 1.0}, "b": {"y": 1.0}}, tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r"needs plotly: pip install .*\[plots\]"):
        analysis.plot_loss_plane(PLANE, tmp_path / "plane.html")
