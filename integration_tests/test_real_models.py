"""RandLoRA on real weights: SmolLM2-135M, Gemma 3 270M and MiniLM.

Start, training, adapter file, another backend, merge, generation: the way of a user.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
import pretrained
import pytest
from keras import ops

import keras_randlora as kr

OTHER_BACKEND = {"jax": "tensorflow", "tensorflow": "torch", "torch": "jax"}
SENTENCES = [
    "a gripping and moving film from the first scene to the last",
    "dull, lifeless and far too long",
    "one of the finest performances of the year",
    "the plot makes no sense and nobody seems to care",
]
LENGTH = 24
# keras-hub leaves the file of a SentencePiece tokenizer open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def causal_lm(folder):
    """Return a causal language model with its preprocessor."""
    model = keras_hub.models.CausalLM.from_preset(str(folder))
    model.preprocessor.sequence_length = LENGTH
    return model


def classifier(folder):
    """Return a BERT classifier with a new head and its preprocessor."""
    keras.utils.set_random_seed(3)
    return keras_hub.models.BertTextClassifier(
        backbone=keras_hub.models.Backbone.from_preset(str(folder)),
        preprocessor=keras_hub.models.BertTextClassifierPreprocessor.from_preset(
            str(folder), sequence_length=LENGTH
        ),
        num_classes=2,
        dropout=0.0,
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A real model, how it is adapted, and what it learns in the test."""

    folder: Callable[[], Path]
    build: Callable[[Path], keras.Model]
    options: dict[str, Any]
    layers: int
    labels: list[int] | None = None

    def load(self):
        """Return the model with its pretrained weights."""
        return self.build(self.folder())

    def batch(self, model):
        """Return one batch `(x, y, …)`, the same on every backend.

        Takes the preprocessor off the model, which would preprocess it once more.
        """
        preprocessor, model.preprocessor = model.preprocessor, None
        if self.labels is not None:
            batch = preprocessor(SENTENCES, np.array(self.labels))
        elif isinstance(model, keras_hub.models.Gemma3CausalLM):
            halves = [sentence.split(" ", 2) for sentence in SENTENCES]
            prompts = [" ".join(words[:2]) for words in halves]
            responses = [f" {words[2]}" for words in halves]
            batch = preprocessor({"prompts": prompts, "responses": responses})
        else:
            batch = preprocessor(SENTENCES)
        return keras.tree.map_structure(ops.convert_to_numpy, batch)


CASES = {
    "smollm2": Case(
        pretrained.smollm2, causal_lm, dict(rank=32, targets="all-linear"), 210
    ),
    "gemma3_270m": Case(
        pretrained.gemma3_270m, causal_lm, dict(rank=64, targets="all-linear"), 126
    ),
    "minilm": Case(
        pretrained.minilm,
        classifier,
        dict(rank=16, targets="attention", also_train=["logits"]),
        24,
        labels=[1, 0, 1, 0],
    ),
}


def outputs_of(model, inputs):
    """Return the logits of a batch."""
    return np.asarray(model.predict_on_batch(inputs))


def relative_difference(found, expected):
    """Return the largest difference over the largest value."""
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


def kernels_of(model, report):
    """Return a copy of some adapted kernels, first to last."""
    paths = [layer.path for layer in report.layers]
    chosen = set(paths[:: len(paths) // 8])
    return {
        weight.path: np.array(ops.convert_to_numpy(weight))
        for weight in model.weights
        if weight.name == "kernel" and weight.path.removesuffix("/kernel") in chosen
    }


def logits_elsewhere(name, adapter, folder):
    """Return the logits that another backend gets in a process of its own."""
    backend = OTHER_BACKEND[keras.backend.backend()]
    answer = folder / "logits.npy"
    code = (
        "import sys, numpy as np, keras_randlora as kr;"
        "from test_real_models import CASES, outputs_of;"
        "case = CASES[sys.argv[1]]; model = case.load();"
        "kr.load_adapter(model, sys.argv[2]);"
        "np.save(sys.argv[3], outputs_of(model, case.batch(model)[0]))"
    )
    here = Path(__file__).parent
    paths = [here, here.parent, here.parent / "examples"]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, name, str(adapter), str(answer)],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        },
        check=True,
    )
    return np.load(answer)


@pytest.mark.parametrize("name", CASES)
def test_real_model(name, tmp_path):
    case = CASES[name]
    model = case.load()
    preprocessor = model.preprocessor
    inputs, *targets = case.batch(model)
    untouched = outputs_of(model, inputs)

    report = model.enable_randlora(**case.options)
    assert len(report.layers) == case.layers
    np.testing.assert_array_equal(outputs_of(model, inputs), untouched)

    kernels = kernels_of(model, report)
    assert len(kernels) >= 8
    model.compile(
        optimizer=keras.optimizers.AdamW(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )
    losses = [model.train_on_batch(inputs, *targets) for _ in range(4)]
    assert losses[-1] < losses[0]
    for path, kernel in kernels_of(model, report).items():
        np.testing.assert_array_equal(kernel, kernels[path])

    trained = outputs_of(model, inputs)
    assert relative_difference(trained, untouched) > 1e-3
    adapter = tmp_path / "adapter.safetensors"
    kr.save_adapter(model, adapter)
    assert adapter.stat().st_size < 4 * report.trainable + 200_000
    elsewhere = logits_elsewhere(name, adapter, tmp_path)
    assert relative_difference(elsewhere, trained) < 1e-4

    with kr.base_only(model):
        base = outputs_of(model, inputs)
    if not case.options.get("also_train"):
        np.testing.assert_array_equal(base, untouched)
    kr.merge_randlora(model)
    assert relative_difference(outputs_of(model, inputs), trained) < 1e-4
    if case.labels is None:
        model.preprocessor = preprocessor
        text = model.generate("The film is", max_length=12)
        assert text.startswith("The film is") and len(text) > len("The film is")
