"""The Python of docs/bigger-models.md runs, on a tiny model; its totals hold."""

import re
from pathlib import Path

import keras_hub
import pytest
from backend import BACKEND
from models import EXAMPLES
from versions import PASSED_BY, needs_mode

import keras_randlora as kr

GUIDE = Path(__file__).parents[2] / "docs" / "bigger-models.md"
GEMMA_7B = {
    "class": "GemmaBackbone",
    "vocabulary_size": 256000,
    "num_layers": 28,
    "num_query_heads": 16,
    "num_key_value_heads": 16,
    "hidden_dim": 3072,
    "intermediate_dim": 49152,
    "head_dim": 256,
}


def blocks():
    found = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert len(found) == 5
    return found


@PASSED_BY
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")  # keras-hub's own data
@needs_mode("int4, blocks")
def test_guide_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    example = EXAMPLES["llama3"]
    monkeypatch.setattr(
        keras_hub.models.Llama3CausalLM,
        "from_preset",
        lambda *_, **__: example.build(),
    )
    names = {"inputs": example.inputs(), "labels": example.labels()}
    *single, several = blocks()
    for block in single:
        exec(compile(block, str(GUIDE), "exec"), names)
    assert names["planned"].fits(24)
    modes = {layer.quantization_mode for layer in names["model"]._flatten_layers()}
    assert "int4" in modes  # the embedding; merged kernels are in floating point
    fresh = example.build()
    kr.load_adapter(fresh, "llama.safetensors")
    compile(several, str(GUIDE), "exec")  # needs eight devices: see test_distribution
    assert "kr.layout_map(" in several


@needs_mode("int4, blocks")
@pytest.mark.skipif(BACKEND != "torch", reason="the table is of this backend")
def test_planned_totals():
    names = {}
    exec(compile(blocks()[0], str(GUIDE), "exec"), names)
    models = {"Llama 3 8B": names["llama"], "Gemma 7B": GEMMA_7B}
    for name, config in models.items():
        for remat in (False, True):
            label = name + ", activation checkpointing" * remat
            row = re.search(
                rf"^\| {label} \| (.*) \|$", GUIDE.read_text(), re.MULTILINE
            )
            totals = [
                kr.plan(
                    config,
                    targets="all-linear",
                    sequence=2048,
                    dtype="bfloat16",
                    quantization=quantization,
                    remat=remat,
                    flash_attention=True,
                ).total
                for quantization in (None, "int8", "int4")
            ]
            assert [f"{total / 1e9:.1f}" for total in totals] == row[1].split(" | ")
