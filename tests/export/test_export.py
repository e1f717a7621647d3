"""Merged artefacts: what stands in them, and what is left where one fails."""

import json
import re
from pathlib import Path

import artefacts
import keras
import numpy as np
import pytest
from models import EXAMPLES
from versions import NEEDS_LLAMA_FOR_TRANSFORMERS, NEEDS_PRESETS_ALONE

import keras_randlora as kr
from keras_randlora.export import artefacts as export
from keras_randlora.tools import atomic

SAVED_MODELS = {
    # Input names, where the model gives any, and their shapes.
    "mlp": (None, [[None, 6]]),
    "cnn": (None, [[None, 8, 8, 3]]),
    "llama3": (["padding_mask", "token_ids"], [[None, None], [None, None]]),
}

pytestmark = [pytest.mark.long_setup, pytest.mark.usefixtures("quick_processes")]


@pytest.fixture(scope="module")
def saved_models(tmp_path_factory):
    """Export three models, and run all the SavedModels in one process."""
    folder = tmp_path_factory.mktemp("saved_models")
    expected, parameters = {}, {}
    for name in SAVED_MODELS:
        model = artefacts.adapted(name)
        before = artefacts.unchanging(model)
        kr.export_merged(model, folder / name, verbose=False)
        assert artefacts.unchanging(model) == before
        expected[name] = [artefacts.outputs(model, b) for b in artefacts.batches(name)]
        parameters[name] = EXAMPLES[name].build().count_params()
    requests = [(name, "tf_saved_model", folder / name) for name in SAVED_MODELS]
    results = dict(zip(SAVED_MODELS, artefacts.run(folder, requests), strict=True))
    return expected, parameters, results, folder


@pytest.mark.parametrize("name", SAVED_MODELS)
def test_saved_model(saved_models, name):
    expected, parameters, results, folder = saved_models
    facts, outputs = results[name]
    names, shapes = SAVED_MODELS[name]
    assert facts["shapes"] == shapes
    assert names is None or facts["names"] == names
    for actual, wanted in zip(outputs, expected[name], strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5)
    # Neither bases nor λ and γ are stored.
    assert facts["stored"] == parameters[name]


def test_saved_model_without_a_trace_in_the_graph(saved_models):
    *_, folder = saved_models
    for name in SAVED_MODELS:
        graph = (folder / name / "saved_model.pb").read_bytes()
        assert b"basis" not in graph and b"randlora" not in graph


@pytest.fixture(scope="module")
def llama():
    return artefacts.adapted("llama3")


def plain_types(model):
    modules = {type(layer).__module__ for layer in model._flatten_layers()}
    return not any("randlora" in module for module in modules)


@pytest.mark.parametrize("name", ["llama3", "mlp", "cnn"])
def test_keras_file(name, tmp_path):
    model = artefacts.adapted(name)
    before = artefacts.unchanging(model)
    kr.export_merged(model, tmp_path / "m.keras", "keras")
    assert artefacts.unchanging(model) == before
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert plain_types(loaded) and loaded.trainable
    assert len(loaded.trainable_weights) == len(
        EXAMPLES[name].build().trainable_weights
    )
    assert loaded.count_params() == EXAMPLES[name].build().count_params()
    for batch in artefacts.batches(name):
        np.testing.assert_allclose(
            artefacts.outputs(loaded, batch), artefacts.outputs(model, batch), atol=1e-5
        )


@NEEDS_PRESETS_ALONE
def test_preset(llama, tmp_path):
    import keras_hub

    before = artefacts.unchanging(llama)
    kr.export_merged(llama, tmp_path / "preset", "preset")
    assert artefacts.unchanging(llama) == before
    loaded = keras_hub.models.CausalLM.from_preset(
        str(tmp_path / "preset"), preprocessor=None
    )
    assert plain_types(loaded)
    for batch in artefacts.batches("llama3"):
        np.testing.assert_allclose(
            artefacts.outputs(loaded, batch), artefacts.outputs(llama, batch), atol=1e-5
        )


@NEEDS_LLAMA_FOR_TRANSFORMERS
def test_transformers_folder(llama, tmp_path):
    kr.export_merged(llama, tmp_path / "hf", "transformers")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    assert (tmp_path / "hf" / "model.safetensors").is_file()


@pytest.fixture
def mlp():
    model = EXAMPLES["mlp"].build()
    kr.enable_randlora(model, rank=3, targets="all-linear")
    return model


@pytest.mark.parametrize(
    "format, name, message",
    [
        ("onnxx", "m.onnx", "`format` must be one of .*'onnx'.*Received.*'onnxx'"),
        ("keras", "m.h5", r"must end in '\.keras'. Received: '.*m\.h5'"),
        ("onnx", "m", r"must end in '\.onnx'"),
        ("litert", "m.lite", r"must end in '\.tflite'"),
        ("openvino", "m.bin", r"must end in '\.xml'"),
        ("torch", "m.pt", r"must end in '\.pt2'"),
        ("preset", "m", "`save_to_preset`.*Received: 'mlp', a Functional"),
        ("transformers", "m", "`export_to_transformers`.*'mlp', a Functional"),
    ],
)
def test_wrong_requests_are_refused(mlp, tmp_path, format, name, message):
    before = artefacts.unchanging(mlp)
    with pytest.raises(ValueError, match=message):
        kr.export_merged(mlp, tmp_path / "new" / name, format)
    assert artefacts.unchanging(mlp) == before
    assert list(tmp_path.iterdir()) == []


def test_a_family_that_keras_hub_cannot_write_is_refused_by_name(tmp_path):
    import keras_hub

    backbone = keras_hub.models.BloomBackbone(23, 1, 2, 8, 16)
    kr.enable_randlora(backbone, rank=2, targets="all-linear")
    with pytest.raises(ValueError, match="BloomBackbone.*GemmaBackbone"):
        kr.export_merged(backbone, tmp_path / "hf", "transformers")


def test_untraceable_layers_are_refused_by_version(mlp, tmp_path, monkeypatch):
    later = export.FORMATS["torch"]._replace(since=(99, 1))
    monkeypatch.setitem(export.FORMATS, "torch", later)
    said = f"'torch' needs Keras 99.1.*This is Keras {re.escape(keras.__version__)}"
    with pytest.raises(ValueError, match=said):
        kr.export_merged(mlp, tmp_path / "m.pt2", "torch")
    assert list(tmp_path.iterdir()) == []


def test_a_task_without_a_preprocessor_is_refused_by_version(
    llama, tmp_path, monkeypatch
):
    import keras_hub

    monkeypatch.setattr(keras_hub, "__version__", "0.29.1")
    with pytest.raises(ValueError, match="keras-hub 0.29.1 .*without a preprocessor"):
        kr.export_merged(llama, tmp_path / "preset", "preset")
    assert list(tmp_path.iterdir()) == []
    kr.export_merged(llama, tmp_path / "m.keras", "keras")


def test_a_plain_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not adapted"):
        kr.export_merged(EXAMPLES["mlp"].build(), tmp_path / "m.keras", "keras")


def test_existing_path_needs_overwrite(mlp, tmp_path):
    path = tmp_path / "m.keras"
    path.write_bytes(b"former")
    with pytest.raises(ValueError, match="exists already.*overwrite=True"):
        kr.export_merged(mlp, path, "keras")
    assert path.read_bytes() == b"former"
    kr.export_merged(mlp, path, "keras", overwrite=True)
    assert keras.saving.load_model(path).count_params() == 143


def test_existing_second_file_needs_overwrite(mlp, tmp_path):
    (tmp_path / "m.bin").write_bytes(b"former")
    with pytest.raises(ValueError, match=r"m\.bin' exists already"):
        kr.export_merged(mlp, tmp_path / "m.xml", "openvino")


def test_unwritable_place(mlp, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    before = artefacts.unchanging(mlp)
    with pytest.raises(OSError, match="file"):
        kr.export_merged(mlp, tmp_path / "file" / "m.keras", "keras")
    assert artefacts.unchanging(mlp) == before


def test_a_missing_package_is_named(mlp, tmp_path, monkeypatch):
    needs_more = {backend: ("no_onnx",) for backend in ("tensorflow", "torch")}
    monkeypatch.setitem(
        export.FORMATS, "onnx", export.FORMATS["onnx"]._replace(backends=needs_more)
    )
    message = r"needs no_onnx: pip install 'keras-randlora\[export\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        kr.export_merged(mlp, tmp_path / "m.onnx", "onnx")


def test_too_large_for_the_format(mlp, tmp_path, monkeypatch):
    monkeypatch.setitem(
        export.FORMATS, "onnx", export.FORMATS["onnx"]._replace(max_bytes=100)
    )
    with pytest.raises(ValueError, match="limited to 2 GB of weights; model 'mlp'"):
        kr.export_merged(mlp, tmp_path / "m.onnx", "onnx")


def test_bases_do_not_count_as_weights(mlp, tmp_path, monkeypatch):
    plain, base = export.FORMATS["keras"], 4 * 143

    def limit(size):
        monkeypatch.setitem(export.FORMATS, "keras", plain._replace(max_bytes=size))

    limit(base - 1)
    with pytest.raises(ValueError, match="limited"):
        kr.export_merged(mlp, tmp_path / "m.keras", "keras")
    limit(base + kr.summary(mlp).adapter_bytes)
    kr.export_merged(mlp, tmp_path / "m.keras", "keras")


@pytest.mark.parametrize("names", [["m.bin", "m.xml"], ["m.xml"]])
def test_a_failing_rename_brings_back_the_former_files(tmp_path, monkeypatch, names):
    former = dict.fromkeys(names, "former")
    for name, text in former.items():
        (tmp_path / name).write_text(text)
    rename = Path.rename

    def fail_second(self, target):
        if self.name == "m.xml" and self.parent.name == "written":
            raise OSError("gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    path = tmp_path / "m.xml"
    with pytest.raises(OSError, match="gone"), atomic.replacing(path) as place:
        for suffix in (".xml", ".bin"):
            Path(place).with_suffix(suffix).write_text("new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == former


@pytest.mark.parametrize("format, name", [("keras", "m.keras"), ("preset", "p")])
def test_a_failing_writer_leaves_the_former_artefact(
    mlp, tmp_path, monkeypatch, format, name
):
    def fail(model, path, say):
        with open(path, "w") as file:
            file.write("half")
        raise RuntimeError("disk full")

    broken = export.FORMATS[format]._replace(write=fail, method=None)
    monkeypatch.setitem(export.FORMATS, format, broken)
    (tmp_path / name).write_text("former")
    before = artefacts.unchanging(mlp)
    with pytest.raises(RuntimeError, match="disk full"):
        kr.export_merged(mlp, tmp_path / name, format, overwrite=True)
    assert artefacts.unchanging(mlp) == before
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "former"


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    model = EXAMPLES["llama3"].build().backbone
    kr.enable_randlora(model, rank=2)
    kr.export_merged(model, tmp_path / "results", "preset")
    kr.export_merged(model, tmp_path / "results", "preset", overwrite=True)
    notes = tmp_path / "results" / "notes.txt"
    notes.write_text("years of work")
    with pytest.raises(FileExistsError, match="holds 'notes.txt', which would be lost"):
        kr.export_merged(model, tmp_path / "results", "preset", overwrite=True)
    assert notes.read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
