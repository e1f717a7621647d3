"""Every format from this backend: run in a fresh process by its own runtime."""

import artefacts
import keras
import numpy as np
import pytest

import keras_randlora as kr

# Classes of keras-hub that open a preset.
MODELS = {"llama3": "CausalLM", "bert": "TextClassifier", "vit": "ImageClassifier"}
PAIRS = [
    (name, format)
    for name in MODELS
    for format in kr.export.FORMATS
    if (format, name) not in {("transformers", "bert"), ("transformers", "vit")}
]
TOLERANCE = 1e-3

# What TensorFlow's and ONNX's own converters warn of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def models():
    """Return the adapted models of `MODELS`."""
    return {name: artefacts.adapted(name) for name in MODELS}


@pytest.mark.parametrize("name, format", PAIRS)
def test_round_trip(models, name, format, tmp_path, record_property):
    model = models[name]
    path = tmp_path / f"model{kr.export.FORMATS[format].suffix or ''}"
    expected = [artefacts.outputs(model, batch) for batch in artefacts.batches(name)]

    kr.export_merged(model, path, format)
    after = [artefacts.outputs(model, batch) for batch in artefacts.batches(name)]
    ((_, actual),) = artefacts.run(tmp_path, [(name, format, path, MODELS[name])])

    for one, other in zip(expected, after, strict=True):
        np.testing.assert_array_equal(one, other)
    errors = [np.abs(a - e).max() for a, e in zip(actual, expected, strict=True)]
    record_property("max_error", f"{max(errors):.1e}")
    print(f"\n{keras.backend.backend()} {name} {format}: {max(errors):.1e}")
    assert max(errors) < TOLERANCE
    scale = min(np.abs(e).max() for e in expected)
    assert scale > 10 * TOLERANCE


def test_existing_openvino_files_are_replaced_together(models, tmp_path):
    path = tmp_path / "model.xml"
    path.write_text("former")
    path.with_suffix(".bin").write_text("former")
    kr.export_merged(models["llama3"], path, "openvino", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert all(p.read_bytes() != b"former" for p in tmp_path.iterdir())
