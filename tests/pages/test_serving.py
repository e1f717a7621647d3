"""The blocks of docs/serving.md run in their order, on a tiny model."""

import re
import shlex
from pathlib import Path

import keras_hub
import numpy as np
import pytest
import tiny_presets
from models import moved_adapter
from versions import NEEDS_LASTING_TOKENIZERS

import keras_randlora as kr
from keras_randlora import cli

GUIDE = Path(__file__).parents[2] / "docs" / "serving.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CUSTOMERS = {
    "legal": "The rent is",
    "medical": "The tablet is",
    "poetry": "The rain is",
}


def execute(language, block, names):
    """Run a block: Python in `names`, or a command of the package."""
    if language == "python":
        exec(compile(block, str(GUIDE), "exec"), names)
    else:
        name, *arguments = shlex.split(block.replace("\\\n", " "))
        assert (name, cli.main(arguments)) == ("keras-randlora", 0)


def move(path, values):
    """Give a file of an adapter values that matter; return its updates."""
    model = tiny_presets.tiny_llama()
    kr.load_adapter(model, path)
    kr.set_adapter(model, moved_adapter(model, values))
    kr.save_adapter(model, path)
    return kr.analysis.updates(model)


@pytest.mark.usefixtures("quick_processes")
@NEEDS_LASTING_TOKENIZERS
def test_guide_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    loaded = []

    def from_preset(name):
        assert name == "llama3.2_1b"
        loaded.append(tiny_presets.tiny_llama())
        return loaded[-1]

    for kind in ("Llama3CausalLM", "CausalLM"):
        task = getattr(keras_hub.models, kind)
        monkeypatch.setattr(task, "from_preset", from_preset)
    load, train, *rest = BLOCK.findall(GUIDE.read_text("utf-8"))
    assert [language for language, _ in rest].count("bash") == 1
    names = {}
    execute(*load, names)
    execute(*train, names)
    updates = {name: move(f"{name}.safetensors", i) for i, name in enumerate(CUSTOMERS)}
    for block in rest:
        execute(*block, names)

    def generated(text, adapter=None):
        model = tiny_presets.tiny_llama()
        if adapter:
            kr.load_adapter(model, f"{adapter}.safetensors")
        model.compile(sampler="greedy")
        return model.generate(text, max_length=16)

    for name, text in CUSTOMERS.items():
        assert names[name] == generated(text, name)
    assert names["base"] == generated("The rent is")
    assert names["completed"] == names["legal"]
    assert len({names["base"], names["legal"], names["mixture"]}) == 3
    plain = kr.analysis.kernels(tiny_presets.tiny_llama())
    by_command = keras_hub.models.Llama3Backbone.from_preset("mixture")
    for mixed in (loaded[0].backbone, by_command):
        found = kr.analysis.updates(mixed, plain)
        assert found.keys() == updates["poetry"].keys()
        for path, update in updates["poetry"].items():
            by_hand = 0.3 * update + 0.7 * updates["legal"].get(path, 0)
            np.testing.assert_allclose(found[path], by_hand, atol=1e-5)
            assert np.abs(by_hand).max() > 1e-2


def test_guide_names_every_format():
    table = re.findall(r"^\| `(\w+)` \|", GUIDE.read_text(), flags=re.MULTILINE)
    assert table == list(kr.export.FORMATS)
