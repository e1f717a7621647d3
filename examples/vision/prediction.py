"""The last step: fine-tune, merge, export, load again, and plot predictions."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

import keras_randlora as kr
from examples.vision import data, train
from examples.vision.comparison import Run
from examples.vision.model import attach, load, logits


class Answers(NamedTuple):
    """Predictions on the test set.

    Attributes:
        before: Predicted classes `(n,)` before fine-tuning.
        after: Those of the exported and reloaded model after it.
        difference: The largest difference between the logits of that model and of the
            adapted one.
    """

    before: np.ndarray
    after: np.ndarray
    difference: float


def predict(plan: Run, parts: data.Parts, classes: int, folder: Path) -> Answers:
    """Fine-tune as planned and classify the test set with the exported model.

    Args:
        plan: With a method that adapts.
        parts: Of the images.
        classes: Number of classes.
        folder: Where the merged model is written to, a preset of keras-hub.
    """
    pixels, size = parts.test.pixels, 2 * plan.batch_size
    before = logits(*load(plan.preset, classes), pixels, size)
    model, converter, _ = train.tuned(plan, parts.train, classes)
    adapted = logits(model, converter, pixels, size)
    attach(converter, model)
    kr.export_merged(model, folder, format="preset", overwrite=True)
    after = logits(*load(str(folder), classes), pixels, size)
    return Answers(
        before=before.argmax(axis=1),
        after=after.argmax(axis=1),
        difference=float(np.abs(after - adapted).max()),
    )


def draw(
    test: data.Images, answers: Answers, names: tuple[str, ...], path: Path
) -> None:
    """Plot the first 16 images of the test set, their labels and both predictions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots(2, 8).ravel()
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    said = {"before": answers.before, "after": answers.after}
    for axis, pixels, label, *found in zip(axes, *test, *said.values(), strict=False):
        axis.imshow(pixels)
        axis.set_title(f"true: {names[label]}", fontsize=10)
        for line, (when, answer) in enumerate(zip(said, found, strict=True)):
            axis.text(
                0.5,
                -0.04 - 0.13 * line,
                f"{when}: {names[answer]}",
                color="tab:green" if answer == label else "tab:red",
                fontsize=10,
                horizontalalignment="center",
                verticalalignment="top",
                transform=axis.transAxes,
            )
    figure.savefig(path, dpi=120)
