"""Fine-tuning tasks on real models, for `basis_quality`.

| task | model | data |
|---|---|---|
| `sst2` | MiniLM, a new head | `sst2/{train,dev}.tsv` (text, tab, label) |
| `boolq` | MiniLM, a new head | yes or no: `commonsense/boolq.{train,test}.json` |
| `arc-easy` | SmolLM2-135M | answers: `commonsense/ARC-Easy.{train,test}.json` |
| `python-help` | SmolLM2-135M | Python's own help texts, no file |
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models import pretrained_folder

TASKS = ("sst2", "boolq", "arc-easy", "python-help")
CLASSIFICATION_LENGTH = 32
LANGUAGE_LENGTH = 64
LANGUAGE_HELD_OUT = 64


@dataclass
class Task:
    """A model to adapt, and its data.

    Attributes:
        model: A keras-hub task without a preprocessor.
        options: Options of `enable_randlora` that belong to the task.
        training: Arrays `(inputs, targets, weights)`.
        held_out: The same.
        batch_size: Examples per step.
        chance: The accuracy of the most frequent class, `None` for language.
    """

    model: Any
    options: dict[str, Any]
    training: tuple
    held_out: tuple
    batch_size: int
    chance: float | None

    def batches(self, seed: int) -> Iterator[tuple]:
        """Yield shuffled batches without end."""
        inputs, targets, weights = self.training
        rng = np.random.default_rng(seed)
        while True:
            order = rng.permutation(len(targets))
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                rows = order[start : start + self.batch_size]
                chosen = {name: array[rows] for name, array in inputs.items()}
                yield chosen, targets[rows], weights[rows]


def build(name: str, folder: Path | None) -> Task:
    """Return a task with a fresh model.

    Args:
        name: One of `TASKS`.
        folder: The folder of the data, with `sst2` and `commonsense` in it.
    """
    if name != "python-help" and folder is None:
        raise SystemExit(f"--data is needed for the task {name!r}.")
    if name in ("sst2", "boolq"):
        return _classification(*_CLASSIFICATION[name](folder))
    files = [None]
    if name == "arc-easy":
        files = [folder / f"commonsense/ARC-Easy.{part}.json" for part in _PARTS]
    return _language(files)


_PARTS = ("train", "test")


def _classification(training: list, held_out: list) -> Task:
    """Return MiniLM with a head, at most 4,096 training and 512 held-out examples."""
    import keras_hub

    folder = pretrained_folder("minilm")
    preprocess = keras_hub.models.BertTextClassifierPreprocessor.from_preset(
        folder, sequence_length=CLASSIFICATION_LENGTH
    )
    model = keras_hub.models.BertTextClassifier(
        keras_hub.models.Backbone.from_preset(folder), num_classes=2, dropout=0.0
    )

    def arrays(examples, count):
        chosen = np.random.default_rng(0).permutation(len(examples))[:count]
        texts, labels = zip(*(examples[i] for i in chosen), strict=True)
        inputs = {k: np.asarray(v) for k, v in preprocess(list(texts)).items()}
        return inputs, np.array(labels), np.ones(len(labels), "float32")

    held_out = arrays(held_out, 512)
    positive = held_out[1].mean()
    return Task(
        model=model,
        options=dict(exclude=["logits"], also_train=["logits"]),
        training=arrays(training, 4096),
        held_out=held_out,
        batch_size=32,
        chance=max(positive, 1 - positive),
    )


def _language(files: list[Path | None]) -> Task:
    """Return SmolLM2 and windows of its tokens, training and held-out."""
    import keras_hub

    folder = pretrained_folder("smollm2")
    import text_data  # beside `pretrained` in examples/

    preprocessor = keras_hub.models.CausalLMPreprocessor.from_preset(folder)
    model = keras_hub.models.CausalLM.from_preset(folder, preprocessor=None)
    if len(files) == 1:
        parts = text_data.split(text_data.load_documents(files[0]))
    else:
        parts = [text_data.load_documents(file) for file in files]
    training, held_out = (
        text_data.pack(part, preprocessor.tokenizer, LANGUAGE_LENGTH) for part in parts
    )
    held_out = held_out.spread(LANGUAGE_HELD_OUT)
    return Task(
        model=model,
        options={},
        training=(training.inputs, training.targets, training.weights),
        held_out=(held_out.inputs, held_out.targets, held_out.weights),
        batch_size=8,
        chance=None,
    )


def _read_sst2(folder: Path) -> list[list[tuple[str, int]]]:
    def read(path):
        lines = path.read_text("utf-8").splitlines()
        return [(t, int(label)) for t, label in (x.rsplit("\t", 1) for x in lines)]

    return [read(folder / f"sst2/{name}.tsv") for name in ("train", "dev")]


def _read_boolq(folder: Path) -> list[list[tuple[str, int]]]:
    def read(path):
        return [
            (
                re.search(r"question: (.*)", record["instruction"])[1],
                int(record["answer"] == "true"),
            )
            for record in json.loads(path.read_text("utf-8"))
        ]

    return [read(folder / f"commonsense/boolq.{part}.json") for part in _PARTS]


_CLASSIFICATION = {"sst2": _read_sst2, "boolq": _read_boolq}
