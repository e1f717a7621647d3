"""`examples/chat.py`: questions in the template of the run."""

import json
import types

import chat
import keras
import numpy as np
import pytest
from backend import BACKEND

import keras_randlora as kr


class Letters:
    """A tokenizer without special tokens."""

    def tokenize(self, inputs):
        return [ord(letter) for letter in inputs]


class Echo(keras.Sequential):
    """A model that answers with the prompt in capitals, once it has an adapter."""

    def generate(self, prompts, max_length, strip_prompt):
        assert self.preprocessor is not None and strip_prompt
        assert np.any(next(iter(kr.get_adapter(self).values())))
        (prompt,) = prompts
        return [f" {prompt.upper()} {max_length}"]


def echo():
    dense = keras.layers.Dense(3, kernel_initializer="ones", name="query")
    return Echo([keras.Input((4,)), dense], name="echo")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Write a run; return its folder and the presets that are loaded."""
    loaded = []

    def load(preset, dtype):
        loaded.append((preset, dtype))
        return echo(), types.SimpleNamespace(tokenizer=Letters())

    monkeypatch.setattr(chat.demo, "load", load)
    model = echo()
    kr.enable_randlora(model, rank=2, targets="query")
    values = {name: a + 1 for name, a in kr.get_adapter(model).items()}
    kr.set_adapter(model, values)
    kr.save_adapter(model, tmp_path / "adapter.safetensors")
    options = {"base_model": "tiny", "dtype": "float32", "use_lora": False}
    card = {"options": {**options, "template": "mistral"}}
    (tmp_path / "run.json").write_text(json.dumps(card))
    return tmp_path, loaded


def test_a_question_gets_the_template_of_the_run(run, capsys):
    folder, loaded = run
    command = ["--backend", BACKEND, "--run", str(folder), "--max_new_tokens", "20"]
    assert chat.main([*command, "--prompt", "what?"]) == 0
    assert loaded == [("tiny", "float32")]
    assert capsys.readouterr().out.endswith("[INST] WHAT? [/INST] 64\n")


def test_lines_are_questions(run, capsys, monkeypatch):
    folder, loaded = run
    lines = iter(["a", "  ", "b" * 70])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or end())

    def end():
        raise EOFError

    adapter = str(folder / "adapter.safetensors")
    command = ["--backend", BACKEND, "--adapter", adapter, "--base_model", "other"]
    assert chat.main(command) == 0
    assert loaded == [("other", None)]
    answers = capsys.readouterr().out.splitlines()[1:]
    assert answers == ["A 128", f"{'B' * 70} 192"]


def test_what_is_missing_is_named(run, capsys, tmp_path):
    folder, _ = run
    adapter = str(folder / "adapter.safetensors")
    assert chat.main(["--backend", BACKEND, "--adapter", adapter]) == 2
    assert "--adapter needs --base_model" in capsys.readouterr().err
    assert chat.main(["--backend", BACKEND, "--run", str(tmp_path / "none")]) == 2
    assert "No such file" in capsys.readouterr().err
