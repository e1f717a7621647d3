"""Each format holds each weight once, quantized ones too."""

import artefacts
import keras
import numpy as np
import pytest
from models import LLAMA
from versions import (
    NEEDS_LLAMA_FOR_TRANSFORMERS,
    NEEDS_PRESETS_ALONE,
    NEEDS_TRACEABLE_LAYERS,
)

import keras_randlora as kr

WRITTEN_HERE = {
    "tensorflow": ["tf_saved_model", "onnx", "litert", "openvino"],
    "jax": [],
    "torch": ["onnx", "torch"],
}[keras.backend.backend()] + ["keras", "preset", "transformers"]
NEEDS = {
    "torch": NEEDS_TRACEABLE_LAYERS,
    "preset": NEEDS_PRESETS_ALONE,
    "transformers": NEEDS_LLAMA_FOR_TRANSFORMERS,
}

# What tf2onnx's use of NumPy and ONNX warns of.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("quick_processes"),
]


@pytest.fixture(scope="module")
def tied():
    """Return an adapted Llama 3 that is all embedding, which is its head as well."""
    import keras_hub

    sizes = {**LLAMA, "num_layers": 1, "vocabulary_size": 400_000, "hidden_dim": 32}
    backbone = keras_hub.models.Llama3Backbone(**sizes, tie_word_embeddings=True)
    model = keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)
    size = 4 * model.count_params()
    kr.enable_randlora(model, rank=2)
    return model, size


@pytest.mark.parametrize(
    "format", [pytest.param(name, marks=NEEDS.get(name, ())) for name in WRITTEN_HERE]
)
def test_size(tied, tmp_path, format):
    model, size = tied
    path = tmp_path / f"m{kr.export.FORMATS[format].suffix or ''}"
    kr.export_merged(model, path, format, verbose=False)
    written = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    assert size < written <= 1.02 * size


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized(tmp_path, quantization):
    """The merged model is quantized, and every runtime computes what Keras does."""
    model = artefacts.adapted("mlp", quantization=quantization)
    requests = []
    for format in set(WRITTEN_HERE) - {"preset", "transformers"}:
        path = tmp_path / f"m{kr.export.FORMATS[format].suffix or ''}"
        kr.export_merged(model, path, format, verbose=False)
        requests.append(("mlp", format, path))
    results = artefacts.run(tmp_path, requests)
    kr.merge_randlora(model)
    for (name, format, _), (_, outputs) in zip(requests, results, strict=True):
        for actual, batch in zip(outputs, artefacts.batches(name), strict=True):
            expected = artefacts.outputs(model, batch)
            np.testing.assert_allclose(actual, expected, atol=1e-5, err_msg=format)


@NEEDS_LLAMA_FOR_TRANSFORMERS
def test_transformers_get_no_integers(tmp_path):
    model = artefacts.adapted("llama3", quantization="int8")
    with pytest.raises(ValueError, match=r"[0-9]+ quantized layers, first '.*\(int8\)"):
        kr.export_merged(model, tmp_path / "hf", "transformers")
    assert list(tmp_path.iterdir()) == []
