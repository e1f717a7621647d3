"""The Python of docs/serving.md runs, on a tiny model."""

import re
from pathlib import Path

import artefacts
import keras_hub
import numpy as np
from models import EXAMPLES

import keras_randlora as kr

GUIDE = Path(__file__).parents[1] / "docs" / "serving.md"
ADAPTERS = {
    "legal": dict(rank=3, targets=None),
    "medical": dict(rank=3, targets=None),
    "poetry": dict(rank=5, targets="mlp", seed=4),
}


def test_guide_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    expected = {}
    inputs = EXAMPLES["llama3"].inputs()
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        model = artefacts.adapted("llama3", seed, **options)
        kr.save_adapter(model, f"{name}.safetensors")
        expected[name] = artefacts.outputs(model, inputs)
    monkeypatch.setattr(
        keras_hub.models.Llama3CausalLM,
        "from_preset",
        lambda _: EXAMPLES["llama3"].build(),
    )
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 7
    names = {"inputs": inputs}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)

    for name, outputs in expected.items():
        np.testing.assert_allclose(names[name], outputs, atol=1e-5)
    np.testing.assert_allclose(names["logits"], expected["legal"], atol=1e-4)
    base = artefacts.outputs(EXAMPLES["llama3"].build(), inputs)
    np.testing.assert_allclose(names["base"], base, atol=1e-5)
    assert np.abs(names["mixture"] - base).max() > 1e-3


def test_guide_names_every_format():
    table = re.findall(r"^\| `(\w+)` \|", GUIDE.read_text(), flags=re.MULTILINE)
    assert table == list(kr.export.FORMATS)
