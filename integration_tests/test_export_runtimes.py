"""Every format from this backend: run in a fresh process by its own runtime."""

from pathlib import Path

import artefacts
import keras
import numpy as np
import pytest

import keras_randlora as kr

# Classes of keras-hub that open a preset.
MODELS = {"llama3": "CausalLM", "bert": "TextClassifier", "vit": "ImageClassifier"}
# {(name, format): what the refusal says}
UNKNOWN_TO_TRANSFORMERS = "`export_to_transformers`, which keras-hub does not give to"
IMPOSSIBLE = {
    ("bert", "transformers"): UNKNOWN_TO_TRANSFORMERS,
    ("vit", "transformers"): UNKNOWN_TO_TRANSFORMERS,
}
PAIRS = [
    (name, format)
    for name in MODELS
    for format in kr.export.FORMATS
    if (name, format) not in IMPOSSIBLE
]
SERVING = Path(__file__).parents[1] / "docs" / "serving.md"
TOLERANCE = 1e-3

# What TensorFlow's and ONNX's own converters warn of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def models():
    """Return the adapted models of `MODELS`."""
    return {name: artefacts.adapted(name) for name in MODELS}


@pytest.fixture(scope="module")
def ways():
    """Return the column of this backend in the table of `docs/serving.md`."""
    column = {"tensorflow": 1, "jax": 2, "torch": 3}[keras.backend.backend()]
    lines = SERVING.read_text("utf-8").splitlines()
    rows = [line.split("|")[1:] for line in lines if line.startswith("| `")]
    return {row[0].strip(" `"): row[column].strip() for row in rows}


@pytest.mark.parametrize("name, format", PAIRS)
def test_round_trip(models, ways, name, format, tmp_path, capsys):
    model = models[name]
    path = tmp_path / f"model{kr.export.FORMATS[format].suffix or ''}"
    expected = [artefacts.outputs(model, batch) for batch in artefacts.batches(name)]

    kr.export_merged(model, path, format)
    elsewhere = "in a second process" in capsys.readouterr().out
    assert ways[format].startswith("second process" if elsewhere else "direct")
    after = [artefacts.outputs(model, batch) for batch in artefacts.batches(name)]
    ((_, actual),) = artefacts.run(tmp_path, [(name, format, path, MODELS[name])])

    for one, other in zip(expected, after, strict=True):
        np.testing.assert_array_equal(one, other)
    errors = [np.abs(a - e).max() for a, e in zip(actual, expected, strict=True)]
    print(f"{keras.backend.backend()} {name} {format}: {max(errors):.1e}")
    assert max(errors) < TOLERANCE
    scale = min(np.abs(e).max() for e in expected)
    assert scale > 10 * TOLERANCE


@pytest.mark.parametrize("name, format", IMPOSSIBLE)
def test_an_impossible_pair_is_refused_by_name(models, name, format, tmp_path):
    with pytest.raises(ValueError, match=IMPOSSIBLE[name, format]):
        kr.export_merged(models[name], tmp_path / "model", format)
    assert list(tmp_path.iterdir()) == []


def test_every_format_is_documented(ways):
    assert list(ways) == list(kr.export.FORMATS)


def test_existing_openvino_files_are_replaced_together(models, tmp_path):
    path = tmp_path / "model.xml"
    path.write_text("former")
    path.with_suffix(".bin").write_text("former")
    kr.export_merged(models["llama3"], path, "openvino", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert all(p.read_bytes() != b"former" for p in tmp_path.iterdir())
