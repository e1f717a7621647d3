"""Loss curves: the loss of each training step, from Keras's running mean."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

INK, QUIET, ACCENT, GRID = "#22313f", "#a9b5bf", "#d1495b", "#e6eaed"


def step_losses(running_means: Sequence[float]) -> list[float]:
    """Return the loss of each step.

    Args:
        running_means: What Keras logs after each batch of an epoch: the mean of the
            losses so far.
    """
    counts = np.arange(1, len(running_means) + 1)
    return np.diff(np.asarray(running_means) * counts, prepend=0.0).tolist()


def smoothed(losses: Sequence[float], reach: int = 4) -> np.ndarray:
    """Return the mean over each step and up to `reach` steps on either side."""
    return np.array(
        [np.mean(losses[max(0, i - reach) : i + reach + 1]) for i in range(len(losses))]
    )


def draw(
    path: Path,
    losses: Sequence[float],
    held_out: Sequence[tuple[int, float]],
    *,
    label: str,
    token: str,
    title: str,
) -> None:
    """Plot the loss of each step and the held-out losses.

    Args:
        path: The file of the plot.
        losses: The loss of each step.
        held_out: Steps and held-out losses; may be empty.
        label: Legend of the held-out losses.
        token: The unit that the losses are means over.
        title: The title of the plot.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=160)
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color=QUIET, lw=1, label="training, each step")
    axes.plot(steps, smoothed(losses), color=INK, lw=2, label="training, smoothed")
    if held_out:
        line = "o-" if len(held_out) > 2 else "o"  # two points are no curve
        axes.plot(*zip(*held_out, strict=True), line, color=ACCENT, label=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("Optimizer step")
    axes.set_ylabel(f"Cross-entropy (nats per {token})")
    axes.set_title(title, loc="left", color=INK)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.04, y=0.15)
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
