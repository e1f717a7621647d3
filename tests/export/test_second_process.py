"""Artefacts that another backend writes, in a second process."""

import signal
import tempfile
import threading
import time
from pathlib import Path

import artefacts
import keras
import keras_hub
import pytest
import tiny_presets
from models import EXAMPLES

import keras_randlora as kr
from keras_randlora.export import second_process

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow",
    reason="TensorFlow writes in its own process",
)


@pytest.fixture
def mlp():
    model = EXAMPLES["mlp"].build()
    kr.enable_randlora(model, rank=3, targets="all-linear")
    return model


@pytest.mark.parametrize(
    "worker, message",
    [
        ("raise SystemExit('no memory')", r"failed \(exit status 1\):\nno memory"),
        ("import os; os.kill(os.getpid(), 9)", r"failed \(exit status -9\)"),
    ],
)
def test_a_failing_second_process(mlp, tmp_path, monkeypatch, worker, message):
    monkeypatch.setattr(second_process, "_WORKER", worker)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "former").write_text("former")
    before = artefacts.unchanging(mlp)
    with pytest.raises(RuntimeError, match=message):
        kr.export_merged(mlp, tmp_path / "m", overwrite=True)
    assert artefacts.unchanging(mlp) == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m" / "former").read_text() == "former"


def test_a_second_process_is_announced(mlp, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(second_process, "_WORKER", "raise SystemExit(1)")
    for verbose in (True, False):
        with pytest.raises(RuntimeError):
            kr.export_merged(mlp, tmp_path / "m.xml", "openvino", verbose=verbose)
        said = capsys.readouterr().out
        assert ("'openvino': in a second process, which runs" in said) == verbose


def local_class():
    class Local(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    return Local


class Scripted(keras.layers.Layer):
    """A layer whose class says that it was defined in the running script."""

    __module__ = "__main__"

    def call(self, inputs):
        return inputs


@pytest.mark.parametrize(
    "kind, named",
    [
        (local_class(), ".*Local of layer 'mine' from 'test_second_process'"),
        (Scripted, "Scripted of layer 'mine' from '__main__'"),
    ],
)
def test_classes_that_a_second_process_cannot_import(tmp_path, kind, named):
    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(3, name="head")(kind(name="mine")(inputs))
    model = keras.Model(inputs, outputs)
    kr.enable_randlora(model, rank=2, targets="head")
    with pytest.raises(ValueError, match=f"cannot import the class {named}"):
        kr.export_merged(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def foreign_llama():
    """Return a Llama 3 whose tokenizer keras-hub saves, but does not load.

    SmolLM2's is of this kind: it comes from a `tokenizer.json` with special tokens of
    its own, which are missing in keras-hub's configuration of a `Llama3Tokenizer`.
    """
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = keras_hub.models.Llama3Tokenizer(
        vocabulary={token: i for i, token in enumerate([*special, "a", "b", "ab"])},
        merges=["a b"],
        bos_token=special[0],
        eos_token=special[1],
        misc_special_tokens=set(),
    )
    task = tiny_presets.tiny_llama()
    task.preprocessor = keras_hub.models.Llama3CausalLMPreprocessor(tokenizer)
    return task


TASKS = {
    "foreign": foreign_llama,
    "llama": tiny_presets.tiny_llama,
    "gemma": tiny_presets.tiny_gemma,
    "bert": lambda: tiny_presets.tiny_bert(2),
    "vit": lambda: tiny_presets.tiny_vit(2),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_preprocessor_stays_here(monkeypatch, tmp_path, name):
    task = TASKS[name]()
    kr.enable_randlora(task, rank=2, targets="all-linear")
    preprocessor, before = task.preprocessor, artefacts.unchanging(task)
    loaded = []

    def run(request, environment, say):
        loaded.append(keras.saving.load_model(request["source"], compile=False))
        Path(request["path"]).write_text("written")
        return 0, ""

    monkeypatch.setattr(second_process, "_run", run)
    kr.export_merged(task, tmp_path / "m", verbose=False)
    assert loaded[0].preprocessor is None
    assert task.preprocessor is preprocessor
    assert artefacts.unchanging(task) == before


def test_stages_of_the_second_process_are_shown(mlp, tmp_path, monkeypatch, capsys):
    worker = f"""
import json, sys
print({second_process._STAGE!r} + "counting")
print("chatter")
open(json.loads(sys.argv[1])["path"], "w").close()
"""
    monkeypatch.setattr(second_process, "_WORKER", worker)
    kr.export_merged(mlp, tmp_path / "m")
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == ["Writing 'tf_saved_model': counting …"]


def test_an_interruption_leaves_nothing_behind(mlp, tmp_path, monkeypatch):
    """Neither here nor in the folder of temporary files, nor a running process."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    worker = """
import os, tempfile, time
folder = tempfile.mkdtemp()
open(os.path.join(os.environ["MARK"]), "w").write(str(os.getpid()))
time.sleep(600)
"""
    mark = tmp_path / "pid"
    monkeypatch.setattr(second_process, "_WORKER", worker)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("MARK", str(mark))

    def interrupt():
        while not mark.exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    # A shell ignores the signal for what it runs in the background.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    watcher = threading.Thread(target=interrupt)
    before = artefacts.unchanging(mlp)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        kr.export_merged(mlp, tmp_path / "new" / "m", verbose=False)
    signal.signal(signal.SIGINT, former)
    watcher.join()
    assert artefacts.unchanging(mlp) == before
    assert list(temporary.iterdir()) == []
    assert list((tmp_path / "new").iterdir()) == []
    assert not Path(f"/proc/{mark.read_text()}").exists()
