"""A `.pt2` file runs on torch alone, at any batch and length."""

import artefacts
import keras
import numpy as np
import pytest
from models import EXAMPLES
from versions import NEEDS_TRACEABLE_LAYERS

import keras_randlora as kr

pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch writes it"),
    NEEDS_TRACEABLE_LAYERS,
]
NAMES = ["llama3", "gemma3", "bert", "vit", "cnn", "attention", "subclassed", "mlp"]


def test_runs_without_keras(tmp_path):
    expected, requests = {}, []
    for name in NAMES:
        model = artefacts.adapted(name)
        before = artefacts.unchanging(model)
        path = tmp_path / f"{name}.pt2"
        kr.export_merged(model, path, "torch", verbose=False)
        assert artefacts.unchanging(model) == before
        assert b"randlora" not in path.read_bytes()
        requests.append((name, "torch", path))
        expected[name] = [artefacts.outputs(model, b) for b in artefacts.batches(name)]
    results = artefacts.run(tmp_path, requests)
    for name, (facts, outputs) in zip(NAMES, results, strict=True):
        assert not facts["keras"]
        assert facts["parameters"] == EXAMPLES[name].build().count_params()
        for actual, wanted in zip(outputs, expected[name], strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-5)
