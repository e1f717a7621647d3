"""Plots of an analysis: PNG, SVG or PDF with matplotlib, HTML with plotly."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_randlora.analysis.loss_plane import LossPlane
from keras_randlora.tools import local_path

_PICTURES = (".png", ".svg", ".pdf")


def plot_spectra(
    spectra: Mapping[str, Any], path: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Plot singular values against their index, one line for each name.

    Args:
        spectra: `{name: singular values}`, largest first, as `update_spectrum` returns
            them.
        path: A file ending in `.png`, `.svg` or `.pdf`.
        title: The title of the plot.

    Raises:
        ValueError: The file has another suffix, or there is nothing to plot.
        ImportError: matplotlib is not installed.

    Example:
    >>> kr.analysis.plot_spectra({"RandLoRA": [3.0, 2.0, 1.0]}, "spectra.png")
    """
    path = _checked(path, _PICTURES)
    if not spectra:
        raise ValueError("There is no spectrum to draw. Received: {}.")
    figure, axes = _figure(7.2, 4.2)
    for name, values in spectra.items():
        values = np.asarray(values, "float64")
        axes.plot(np.arange(1, len(values) + 1), values, label=name, lw=1.6)
    largest = max(float(np.max(values)) for values in spectra.values())
    if largest > 0:
        axes.set_yscale("log")
        axes.set_ylim(largest * 1e-5, largest * 2)
    axes.set_xlabel("Index of the singular value")
    axes.set_ylabel("Singular value of the update")
    axes.legend(frameon=False, fontsize=9)
    _save(figure, axes, path, title)


def plot_cka(
    series: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike[str],
    *,
    title: str = "",
) -> None:
    """Plot the CKA of activations by layer, one line for each name.

    Args:
        series: `{name: {layer: cka}}`, the same layers in each, as `layer_cka` returns
            them.
        path: A file ending in `.png`, `.svg` or `.pdf`.
        title: The title of the plot.

    Raises:
        ValueError: The file has another suffix, or the layers differ.
        ImportError: matplotlib is not installed.

    Example:
    >>> series = {"RandLoRA": {"block_0": 0.99, "block_1": 0.97}}
    >>> kr.analysis.plot_cka(series, "cka.png")
    """
    path = _checked(path, _PICTURES)
    layers = [list(values) for values in series.values()]
    if not layers or any(names != layers[0] for names in layers):
        raise ValueError(
            "Each series must have the same layers. Received: "
            f"{ {name: list(values) for name, values in series.items()} }."
        )
    figure, axes = _figure(7.2, 4.8)
    for name, values in series.items():
        axes.plot(range(len(values)), list(values.values()), marker="o", label=name)
    axes.set_xticks(
        range(len(layers[0])), layers[0], rotation=30, ha="right", fontsize=8
    )
    axes.set_ylabel("CKA")
    axes.legend(frameon=False, fontsize=9)
    _save(figure, axes, path, title)


def plot_loss_plane(
    plane: LossPlane, path: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Plot the loss on a plane with its three models.

    Args:
        plane: The result of `loss_plane`.
        path: `.png`, `.svg` or `.pdf`: contour lines. `.html`: a page with an
            interactive surface, which needs no network.
        title: The title of the plot.

    Raises:
        ValueError: The file has another suffix.
        ImportError: matplotlib, or plotly for a page, is not installed.

    Example:
    >>> corners = {name: [row] for name, row in zip("abc", np.eye(3), strict=True)}
    >>> loss = lambda weights: float(weights[0].std())
    >>> plane = kr.analysis.loss_plane(corners, loss, resolution=3)
    >>> kr.analysis.plot_loss_plane(plane, "plane.html")
    """
    path = _checked(path, (*_PICTURES, ".html"))
    if path.suffix == ".html":
        _surface(plane, path, title)
        return
    figure, axes = _figure(6.4, 5.2)
    # A steep corner must not take all the colours.
    lowest, high = plane.losses.min(), np.quantile(plane.losses, 0.9)
    levels = np.linspace(lowest, high, 25) if high > lowest else 24
    surface = (plane.x, plane.y, plane.losses)
    filled = axes.contourf(*surface, levels=levels, cmap="viridis_r", extend="max")
    axes.contour(*surface, levels=levels, colors="white", linewidths=0.3)
    figure.colorbar(filled, ax=axes, label="Loss", format="%.3g")
    marks = zip(plane.names, plane.corners, plane.corner_losses, strict=True)
    for name, (x, y), loss in marks:
        axes.scatter([x], [y], color="white", edgecolor="black", s=60, zorder=3)
        axes.annotate(
            f"{name}, {loss:.3f}",
            (x, y),
            textcoords="offset points",
            xytext=(0, 9),
            ha="center",
            fontsize=9,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5},
        )
    axes.set_xlabel("Distance in weight space")
    axes.set_ylabel("Distance")
    axes.set_aspect("equal")
    _save(figure, axes, path, title)


def _surface(plane: LossPlane, path: Path, title: str) -> None:
    graphs = _imported("plotly.graph_objects", "plotly")
    points = graphs.Scatter3d(
        x=plane.corners[:, 0],
        y=plane.corners[:, 1],
        z=plane.corner_losses,
        mode="markers+text",
        text=list(plane.names),
        marker={"size": 5, "color": "black"},
    )
    surface = graphs.Surface(
        x=plane.x,
        y=plane.y,
        z=plane.losses,
        colorscale="Viridis",
        reversescale=True,
        opacity=0.9,
        colorbar={"title": "Loss"},
    )
    figure = graphs.Figure([surface, points])
    axes = {"x": "distance", "y": "distance", "z": "loss"}
    figure.update_layout(
        title=title,
        scene={f"{axis}axis_title": name for axis, name in axes.items()},
    )
    figure.write_html(path, include_plotlyjs=True)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figures = _imported("matplotlib.figure", "matplotlib")
    figure = figures.Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, axes: Any, path: Path, title: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11)
    figure.savefig(path)


def _checked(path: str | os.PathLike[str], suffixes: tuple[str, ...]) -> Path:
    path = local_path(path)
    if path.suffix not in suffixes:
        raise ValueError(
            f"The file of a plot must end in one of {', '.join(suffixes)}. "
            f"Received: '{path}'."
        )
    return path


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"Drawing needs {package}: pip install keras-randlora[plots]"
        ) from error
