"""SST-2 as arrays: sentences of film reviews, positive (1) or negative (0)."""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.command_line import UserError
from examples.pretrained import resolve

VALIDATION_SHARE = 0.1


class Examples(NamedTuple):
    """Sentences and their labels.

    Attributes:
        inputs: Inputs of BERT: `token_ids`, `padding_mask` and `segment_ids`, each
            `(n, length)` int32.
        labels: `(n,)` int32.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> "Examples":
        """Return the examples of these rows, in their order."""
        inputs = {name: array[rows] for name, array in self.inputs.items()}
        return Examples(inputs, self.labels[rows])


class Corpus(NamedTuple):
    """Training and dev set; a part of `train` serves to choose the learning rate."""

    train: Examples
    dev: Examples


def read(path: Path) -> tuple[list[str], np.ndarray]:
    """Return sentences and labels `(n,)` of a file with lines of text, tab, 0 or 1.

    Raises:
        UserError: The file is missing, or a line has another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise UserError(
            f"Cannot read {path}: {error.strerror}. `--data` names the folder that "
            "holds sst2/train.tsv and sst2/dev.tsv."
        ) from error
    texts, labels = [], []
    for number, line in enumerate(lines, 1):
        text, _, label = line.rpartition("\t")
        if label not in ("0", "1") or not text:
            raise UserError(
                f"{path}, line {number}: expected text, a tab, and 0 or 1. "
                f"Received: {line!r}."
            )
        texts.append(text)
        labels.append(int(label))
    return texts, np.array(labels, "int32")


def encode(texts: list[str], length: int) -> dict[str, np.ndarray]:
    """Return MiniLM's inputs, each `(n, length)` int32; longer sentences are cut."""
    import keras_hub

    preprocess = keras_hub.models.BertTextClassifierPreprocessor.from_preset(
        resolve("minilm"), sequence_length=length
    )
    return {name: np.array(x, "int32") for name, x in preprocess(texts).items()}


@functools.cache
def load(folder: Path, length: int) -> Corpus:
    """Return the corpus of a data folder, cached in the process."""
    parts = []
    for name in Corpus._fields:
        texts, labels = read(folder / "sst2" / f"{name}.tsv")
        parts.append(Examples(encode(texts, length), labels))
    return Corpus(*parts)


def hold_out(train: Examples) -> tuple[Examples, Examples]:
    """Return a training set, and a validation set of a tenth."""
    rows = np.random.default_rng(0).permutation(len(train.labels))
    held_out = round(VALIDATION_SHARE * len(rows))
    return train.take(rows[held_out:]), train.take(rows[:held_out])


def within_budget(train: Examples, budget: str, seed: int) -> Examples:
    """Return the training examples of a budget.

    Args:
        train: All examples.
        budget: `"16"`: 16 per class; `"50%"`: a share of all.
        seed: The seed of the choice.

    Raises:
        UserError: There are too few examples, or it is not a budget.
    """
    rows = np.random.default_rng([seed, 1]).permutation(len(train.labels))
    number = budget.removesuffix("%")
    if not number.isdigit() or not int(number):
        raise UserError(
            "A budget is a number of examples a class or a percentage. "
            f"Received: {budget!r}."
        )
    if budget != number:
        return train.take(rows[: round(int(number) / 100 * len(rows))])
    classes = [rows[train.labels[rows] == label] for label in (0, 1)]
    if min(map(len, classes)) < int(number):
        raise UserError(
            f"There are fewer than {number} examples of a class. Received: "
            f"{', '.join(str(len(c)) for c in classes)}."
        )
    return train.take(np.concatenate([c[: int(number)] for c in classes]))
