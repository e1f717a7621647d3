"""Every script in examples/guides runs, on tiny models in place of presets."""

import http.server
import json
import runpy
import urllib.request
from concurrent import futures
from pathlib import Path

import artefacts
import keras
import keras_hub
import numpy as np
import pytest
import tiny_presets
from drawn import draw_b, draw_b_ops
from keras import ops
from models import moved_adapter
from safetensors.numpy import load_file
from versions import PASSED_BY, needs_mode

import keras_randlora as kr
from keras_randlora.bases import BasisSpec
from keras_randlora.bases import spec as specs
from keras_randlora.layers import kinds

GUIDES = Path(__file__).parents[2] / "examples" / "guides"
# keras-hub hands a `tf.data.Dataset` to `fit`, which warns about its own default.
pytestmark = pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Return a function that runs a guide in an empty folder and gives its names."""
    monkeypatch.chdir(tmp_path)
    tiny_presets.install(monkeypatch)
    return lambda name: runpy.run_path(str(GUIDES / f"{name}.py"))


def logits(model):
    return artefacts.outputs(model, tiny_presets.TOKENS)


def fell(history):
    losses = history.history["loss"]
    return losses[-1] < losses[0]


def test_gemma(run):
    names = run("gemma")
    assert fell(names["history"])
    loaded = tiny_presets.tiny_gemma()
    kr.load_adapter(loaded, "gemma.safetensors")
    assert all(np.ptp(array) > 1e-4 for array in kr.get_adapter(loaded).values())
    np.testing.assert_allclose(logits(names["model"]), logits(loaded), atol=1e-5)
    assert Path("gemma-merged/model.weights.h5").is_file()


def test_llama(run):
    names = run("llama")
    assert names["after"] < names["before"]
    assert len(names["report"].layers) == 7
    np.testing.assert_array_equal(logits(names["fresh"]), logits(names["model"]))


def test_text_classification(run):
    names = run("text_classification")
    assert fell(names["history"])
    assert names["confusion"].sum(axis=1).tolist() == [2, 2]
    assert Path("sentiment.keras").is_file()
    assert Path("confusion.png").read_bytes().startswith(b"\x89PNG")
    adapter = kr.get_adapter(names["classifier"])
    for key, array in load_file("sentiment.safetensors").items():
        np.testing.assert_array_equal(adapter.pop(key), array)
    assert not adapter
    about = {"num_classes": 2, "sequence_length": 32}
    about["class_names"] = ["negative", "positive"]
    assert kr.adapter_metadata("sentiment.safetensors") == about


def test_serve_classifier(run):
    trained = tiny_presets.tiny_bert(num_classes=2)
    trained.preprocessor.sequence_length = 16
    kr.enable_randlora(trained, rank=4, also_train=["logits"])
    kr.set_adapter(trained, moved_adapter(trained, 1))
    about = {"class_names": ["negative", "positive"]}
    kr.save_adapter(trained, "sentiment.safetensors", metadata=about)
    names = run("serve_classifier")
    assert names["classifier"].preprocessor.sequence_length == 16
    text = "a clever and funny film"
    logits = trained.predict([text], verbose=0)[0]
    shares = np.exp(logits) / np.exp(logits).sum()
    names["Handler"].log_message = lambda *_: None
    server = http.server.HTTPServer(("localhost", 0), names["Handler"])
    with server, futures.ThreadPoolExecutor() as pool:
        served = pool.submit(server.handle_request)
        place = f"http://localhost:{server.server_port}"
        with urllib.request.urlopen(place, data=text.encode(), timeout=60) as answer:
            found = json.load(answer)
        served.result()
    assert found["label"] == about["class_names"][shares.argmax()]
    assert found["probability"] == pytest.approx(shares.max(), abs=1e-3)


def test_image_classification(run):
    names = run("image_classification")
    assert fell(names["history"])
    assert set(names["expected"]) == {0, 1, 2}
    saved = load_file("stripes.safetensors")
    for key, array in kr.get_adapter(names["classifier"]).items():
        np.testing.assert_array_equal(array, saved[key])


# Keras says so of each layer without a kernel.
@needs_mode("int4, blocks")
@PASSED_BY
def test_quantized(run):
    names = run("quantized")
    assert fell(names["history"])
    modes = {layer.quantization_mode for layer in names["model"]._flatten_layers()}
    assert modes == {None, "int4"}
    base = tiny_presets.tiny_llama()
    kernels = [kr.analysis.kernels(model) for model in (base, names["whole"])]
    changed = [np.ptp(kernels[0][path] - kernels[1][path]) for path in kernels[0]]
    assert min(changed) > 1e-3


def test_from_peft(run):
    trained = tiny_presets.tiny_llama()
    kr.enable_randlora(trained, rank=3, targets="attention", basis="kronecker")
    kr.set_adapter(trained, moved_adapter(trained, 0))
    kr.peft.save(trained, "peft-adapter")
    names = run("from_peft")
    np.testing.assert_allclose(logits(names["model"]), logits(trained), atol=1e-5)
    again = tiny_presets.tiny_llama()
    kr.peft.load(again, "for-peft")
    np.testing.assert_allclose(logits(again), logits(trained), atol=1e-5)
    config = json.loads(Path("own-for-peft/adapter_config.json").read_text())
    assert config["r"] == 32


def test_choosing(run, monkeypatch):
    wide = tiny_presets.tiny_llama(width=256)
    monkeypatch.setattr(keras_hub.models.Llama3CausalLM, "from_preset", lambda _: wide)
    names = run("choosing")
    counts = names["counts"]
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    kinds = [layer.name for layer in names["report"].layers]
    assert kinds == ["query", "key", "value", "feedforward_gate_dense"]


def test_from_lora(run):
    names = run("from_lora")
    enabled = {
        layer.path
        for layer in names["with_lora"]._flatten_layers()
        if getattr(layer, "lora_enabled", False)
    }
    assert {layer.path for layer in names["report"].layers} == enabled


def test_resuming(run):
    names = run("resuming")
    for key, array in names["uninterrupted"].items():
        np.testing.assert_allclose(names["resumed"][key], array, atol=1e-6)
        assert np.ptp(array) > 1e-4
    assert names["best"].best == min(names["history"].history["val_loss"])
    assert Path("best.safetensors").is_file()
    newest = names["newest"]
    assert newest.path == Path("kept/06.safetensors") and newest.moment.epoch == 6
    assert len(list(Path("kept").iterdir())) in (4, 6)  # two or three with optimizers


def test_new_basis(run):
    try:
        run("new_basis")
        spec = BasisSpec("four_levels", None, 7)
        drawn = draw_b(spec, 65, 33)
        in_a_trace = ops.convert_to_numpy(draw_b_ops(spec, 65, 33))
        np.testing.assert_array_equal(drawn, in_a_trace)
        assert len(np.unique(drawn)) == 4
        np.testing.assert_allclose(drawn.std(), 1, atol=0.05)
        model = keras.Sequential([keras.Input((24,)), keras.layers.Dense(24, name="d")])
        kr.enable_randlora(model, rank=3, targets="d", basis="four_levels")
        values = {
            key: np.random.default_rng(1).standard_normal(array.shape)
            for key, array in kr.get_adapter(model).items()
        }
        kr.set_adapter(model, values)
        assert kr.analysis.update_rank(model.get_layer("d")) == 24
    finally:
        specs._KINDS.pop("four_levels", None)


def test_new_layer(run):
    names = run("new_layer")
    kind, model = names["Scores"], names["model"]
    try:
        assert [layer.name for layer in names["report"].layers] == ["hidden", "scores"]
        x = np.random.default_rng(0).random((4, 7), "float32")
        model.compile(keras.optimizers.Adam(0.003), "mse")
        losses = [model.train_on_batch(x, np.ones((4, 9))) for _ in range(5)]
        assert losses[-1] < losses[0]
        trained = model.predict(x, verbose=0)
        assert np.any(kr.get_adapter(model)["scores/lambda"])
        kr.save_adapter(model, "adapter.safetensors")
        kr.merge_randlora(model)
        assert type(model.get_layer("scores")) is kind
        np.testing.assert_allclose(model.predict(x, verbose=0), trained, atol=1e-5)
    finally:
        kinds._KINDS.pop(kind, None)


def test_experts(run):
    names = run("experts")
    assert fell(names["history"])
    report, shared = names["report"], names["shared"]
    assert (report.coverage, len(report.layers), len(shared.layers)) == (1.0, 7, 3)
    loaded = tiny_presets.tiny_mixtral()
    kr.load_adapter(loaded, "experts.safetensors")
    trained = kr.get_adapter(loaded)
    assert all(np.any(trained[key]) for key in trained if key.endswith("lambda"))
    assert [layer.path for layer in kr.summary(names["own"]).layers] == ["heads/bank"]


def test_every_guide_is_run():
    tested = {name[5:] for name in globals() if name.startswith("test_")}
    assert {path.stem for path in GUIDES.glob("*.py")} <= tested
