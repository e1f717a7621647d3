"""Each format holds each weight once."""

import keras
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
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


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
