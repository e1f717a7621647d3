"""The Python of docs/serving.md runs, on a tiny model."""

import re
from pathlib import Path

import artefacts
import keras_hub
import numpy as np
from models import EXAMPLES

import keras_randlora as kr

GUIDE = Path(__file__).parents[2] / "docs" / "serving.md"
ADAPTERS = {
    "legal": dict(rank=3, targets=None),
    "medical": dict(rank=3, targets=None),
    "poetry": dict(rank=5, targets=["mlp", "query"], seed=4),
}


def test_guide_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    expected, updates, loaded = {}, {}, []
    inputs = EXAMPLES["llama3"].inputs()
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        model = artefacts.adapted("llama3", seed, **options)
        kr.save_adapter(model, f"{name}.safetensors")
        expected[name] = artefacts.outputs(model, inputs)
        updates[name] = kr.analysis.updates(model)

    def from_preset(name):
        loaded.append(EXAMPLES["llama3"].build())
        return loaded[-1]

    monkeypatch.setattr(keras_hub.models.Llama3CausalLM, "from_preset", from_preset)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 7
    names = {"inputs": inputs}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)

    for name, outputs in expected.items():
        np.testing.assert_allclose(names[name], outputs, atol=1e-5)
    np.testing.assert_allclose(names["logits"], expected["legal"], atol=1e-4)
    plain, (mixed, _) = EXAMPLES["llama3"].build(), loaded
    base = artefacts.outputs(plain, inputs)
    np.testing.assert_allclose(names["base"], base, atol=1e-5)
    mixture = artefacts.outputs(mixed, inputs)
    np.testing.assert_allclose(names["mixture"], mixture, atol=1e-5)
    legal, poetry = updates["legal"], updates["poetry"]
    found = kr.analysis.updates(mixed, kr.analysis.kernels(plain))
    assert found.keys() == legal.keys() | poetry.keys()
    for path in legal.keys() & poetry.keys():
        by_hand = 0.7 * legal[path] + 0.3 * poetry[path]
        np.testing.assert_allclose(found[path], by_hand, atol=1e-5)
        assert np.abs(by_hand).max() > 1e-2


def test_guide_names_every_format():
    table = re.findall(r"^\| `(\w+)` \|", GUIDE.read_text(), flags=re.MULTILINE)
    assert table == list(kr.export.FORMATS)
