"""Tests of `benchmarks/` on tiny models: each command's work, and the arithmetic."""

import json
import re
import subprocess
import sys

import keras
import pytest
from versions import NEEDS_PRESETS_ALONE

from benchmarks import machine, operations, race, report, step_time
from benchmarks.cases import Case, batch_shape, parse_method
from benchmarks.models import MODELS

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.usefixtures("quick_processes")
TINY_KERNELS = [(16, 16), (16, 8), (16, 8), (16, 16), (16, 24), (16, 24), (24, 16)]


def test_step_time_end_to_end(tmp_path, capsys):
    path = tmp_path / "step.json"
    model = ["--models", "tiny", "--tokens", "2x4", "--rank", "3", "--lora-rank", "2"]
    methods = ["--methods", "keras-lora", "randlora-uniform", "--steps", "2"]
    where = ["--backends", BACKEND, "--threads", "1", "--out", str(path)]
    assert step_time.main([*model, *methods, *where]) == 0
    lora, ours = json.loads(path.read_text())["cases"][0]["rows"]
    assert len(lora["seconds"]) == len(ours["seconds"]) == 2
    assert lora["ratios"] == {"keras-lora": 1}
    assert ours["ratios"]["keras-lora"] > 0
    assert ours["first_loss"] == pytest.approx(lora["first_loss"], rel=1e-5)
    assert ours["loss"] < ours["first_loss"]
    assert lora["trainable"] == sum(
        2 * (a * b // last + last)
        for (a, b), last in zip(TINY_KERNELS, (4, 4, 4, 16, 24, 24, 16), strict=True)
    )
    assert ours["trainable"] == sum(
        -(-min(sides) // 3) * (3 + min(sides)) for sides in TINY_KERNELS
    )
    assert ours["peak_bytes"] >= ours["before_bytes"] > 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "| randlora-uniform |" in capsys.readouterr().out


def test_a_single_layer_both_ways():
    from benchmarks import layer_worker

    settings = dict(bases=["uniform", "nonsense"], layers=[(12, 8, 6, 3)])
    settings |= dict(lora_rank=2, dtype="float32", seconds=0.0)
    *failed, row = layer_worker.measure(settings)
    assert [f["method"].partition(",")[0] for f in failed] == [
        "randlora-nonsense-materialized",
        "randlora-nonsense-factored",
    ]
    ways = {"randlora-uniform-materialized", "randlora-uniform-factored"}
    assert row["ratios"].keys() == ways
    assert row["operations"]["keras-lora"] == 6 * 6 * 12 * 8 + 6 * 12 * 8 * 2
    assert row["rounds"] == layer_worker.FEWEST
    assert row["auto"]["uniform"] in report.single_layer([row])


@pytest.mark.any_backend
def test_a_life_cycle():
    from benchmarks import cycle_worker

    settings = dict(model="tiny", targets=["query", "value"], rank=3, repeats=1)
    rows = cycle_worker.measure({**settings, "storages": ["uniform", "nonsense"]})
    *rows, failed = rows
    values = {row["measure"]: row["value"] for row in rows}
    assert "nonsense" in failed["error"]
    assert values["adapted layers"] == 2
    assert values["trained parameters"] == 6 * (3 + 16) + 3 * (3 + 8)
    assert values["largest adapted kernel, MB"] == 4 * 16 * 16 / 1e6
    assert values["uniform bases, MB"] == 4 * (3 * 16 + 16 * 18) / 1e6
    assert "save the adapter, s" in report.life_cycle(rows)


@NEEDS_PRESETS_ALONE
def test_an_export():
    from benchmarks import export_worker

    rows = export_worker.measure(dict(model="tiny", rank=2, format="preset"))
    values = {row["measure"]: row["value"] for row in rows}
    assert values["preset, s"] > 0
    assert values["preset, bytes / model"] > 1
    peak = values["preset, peak of all processes / model"]
    assert peak >= values["preset, held before / model"] > 0


@pytest.mark.any_backend
def test_long_sequences(tmp_path, capsys):
    from benchmarks import long_sequences

    path = tmp_path / "long.json"
    what = ["--model", "tiny", "--lengths", "6", "--rank", "3"]
    where = ["--backends", BACKEND, "--threads", "1", "--out", str(path)]
    assert long_sequences.main([*what, *where]) == 0
    rows = json.loads(path.read_text())["cases"][0]["rows"]
    assert [(row["way"], row["length"]) for row in rows] == [
        (way, 6) for way in long_sequences.WAYS
    ]
    whole, remat, _ = rows
    assert remat["first_loss"] == pytest.approx(whole["first_loss"], rel=1e-5)
    assert whole["peak_bytes"] >= whole["before_bytes"] > 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    table = capsys.readouterr().out
    assert "| 6 " in table and "remat, predicted, MB" in table


class FakeRunner(race.Runner):
    """A runner without a process; a step takes a second a letter of its method."""

    order: list[str] = []

    def __init__(self, case):
        self.case, self.facts, self.seconds = case, {}, {}

    def _ask(self, question):
        FakeRunner.order.append(f"{question} {self.case.method}")
        if (question, self.case.method) == ("step", "randlora-broken"):
            raise race.WorkerError("it broke")
        return {
            "prepare": {"first_peak_bytes": 100},
            "step": {"seconds": float(len(self.case.method)), "loss": 1.0},
            "memory": {"peak_bytes": 100},
        }[question]

    def _answer(self):
        return {}

    def stop(self):
        pass


@pytest.fixture
def raced(monkeypatch):
    """Return a function that races methods with so much memory."""
    monkeypatch.setattr(race, "Runner", FakeRunner)
    monkeypatch.setattr(FakeRunner, "order", [])

    def run(methods, free):
        monkeypatch.setattr(race.memory.HostMemory, "available", lambda self: free)
        return race.race([Case(BACKEND, name, "tiny") for name in methods], 2)

    return run


METHODS = ["full", "keras-lora", "randlora-uniform"]


def test_methods_step_in_turn(raced):
    full, lora, ours = raced(METHODS, free=1000)
    steps = [line for line in FakeRunner.order if line.startswith("step")]
    assert steps == ["step keras-lora", "step full", "step randlora-uniform"] * 2
    assert full["ratios"] == {"keras-lora": 4 / 10}
    assert ours["ratios"] == {"keras-lora": 16 / 10}
    assert ours["median_s"] == 16


def test_methods_come_in_groups_where_memory_is_short(raced):
    full, lora, ours = raced(METHODS, free=149)
    steps = [line for line in FakeRunner.order if line.startswith("step")]
    assert steps == (
        ["step keras-lora", "step full"] * 2
        + ["step keras-lora", "step randlora-uniform"] * 2
    )
    assert len(lora["seconds"]) == 4
    assert ours["ratios"] == {"keras-lora": 16 / 10}


def test_a_method_that_breaks_leaves_the_others(raced, capsys):
    lora, broken, ours = raced(["keras-lora", "randlora-broken", METHODS[-1]], 1000)
    assert broken == {
        "method": "randlora-broken",
        "error": "it broke",
        "first_peak_bytes": 100,
    }
    assert ours["ratios"] == {"keras-lora": 16 / 10}


@pytest.mark.any_backend
def test_counted_operations():
    block = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536
    query_value = 576 * 576 + 576 * 192
    tokens = 512
    linear, head = 30 * 4 * tokens * block, 4 * tokens * 576 * 49152

    def count(method, *targets):
        options = dict(batch=2, length=256, rank=100, lora_rank=16)
        targets = targets or ("all-linear",)
        case = Case("torch", method, "smollm2", targets=targets, **options)
        return operations.of_step(case)

    full, lora = count("full"), count("keras-lora")
    assert full.linear == lora.linear == linear
    assert full.linear + full.method == 30 * 6 * tokens * block
    assert (full.head, lora.head) == (head * 6 // 4, head)
    assert lora.attention == 30 * 12 * 2 * 256 * 256 * 576
    assert lora.method == 30 * (2 * tokens * block + 6 * block * 16)
    some = count("keras-lora", "query", "value")
    assert some.method == 30 * (2 * tokens * query_value + 6 * query_value * 16)
    theirs = count("peft-lora", "query", "value")
    assert theirs.method == 30 * 6 * tokens * 16 * (2 * 576 + 576 + 192)
    theirs = count("peft-randlora", "query", "value")
    square, narrow = 600 * (4 * 576 + 6 * 576), 200 * (4 * 576 + 6 * 192)
    assert theirs.method == 30 * tokens * (square + narrow)
    assert operations.of_step(Case("jax", "randlora-uniform", "smollm2"), 7).method == 7


@pytest.mark.any_backend
def test_names_of_methods():
    ours = parse_method("randlora-very_sparse-factored-regenerated")
    assert ours.options() == {
        "basis": "very_sparse",
        "compute": "factored",
        "basis_storage": "regenerated",
    }
    assert parse_method("randlora-ternary").options()["sparsity"] == 100
    for wrong in ("lora", "randlora", "randlora-uniform-fast", "peft"):
        with pytest.raises(ValueError, match=f"Received: '{wrong}'"):
            parse_method(wrong)


@pytest.mark.any_backend
def test_options():
    assert [batch_shape(text) for text in ("8x256", "2048", "96")] == [
        (8, 256),
        (8, 256),
        (1, 96),
    ]
    with pytest.raises(SystemExit):
        step_time.parse(["--tokens", "0x8"], {})
    with pytest.raises(SystemExit):
        step_time.parse(["--targets", "querry"], {})
    assert MODELS["tiny"].targeted(("value", "query")) == ["query", "value"]


def test_without_a_gpu_the_benchmark_says_so(monkeypatch, capsys):
    from benchmarks import gpu_step

    monkeypatch.setattr(machine, "gpu", lambda: None)
    assert gpu_step.main() == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_auto_is_compared_with_the_faster_way():
    row = {"median_s": {"randlora-u-materialized": 3.0, "randlora-u-factored": 2.0}}
    assert report.auto_verdict({**row, "auto": {"u": "factored"}}) == ["u factored"]
    wrong = report.auto_verdict({**row, "auto": {"u": "materialized"}})
    assert wrong == ["u materialized (+50%)"]


def test_markdown():
    assert report.markdown(["a", "bb"], [["x", "1"]]).splitlines() == [
        "| a | bb |",
        "| - | -: |",
        "| x |  1 |",
    ]


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_the_sizes_are_those_of_the_built_model(family):
    from benchmarks.models import Decoder, build_keras
    from keras_randlora.adapt.targets import select
    from keras_randlora.config import RandLoRAConfig
    from keras_randlora.layers import layout_of

    sizes = Decoder(family, 20, 1, 16, 24, 4, 2, 4)
    model = build_keras(sizes, "float32")
    chosen = select(model, RandLoRAConfig(rank=2, targets="all-linear")).adapted
    layouts = {site.name: layout_of(site.layer) for site in chosen}
    found = {name: (a.inputs, a.outputs) for name, a in layouts.items()}
    assert found == sizes.kernels()


@pytest.mark.parametrize(
    "event, name",
    [
        ("model/block_0/query/Tensordot/MatMul:_MklMatMul", "_MklMatMul"),
        ("dot_general.72", "dot_general"),
        ("multiply_add_fusion.2.1", "multiply_add_fusion"),
        ("end: dot.26", None),
        ("ExecutorState::Process", None),
        ("PjitFunction(train_step)", None),
    ],
)
def test_operations_of_traces(event, name):
    from benchmarks import traces

    assert traces.operation(event) == name


def test_profile_of_a_step(tmp_path, capsys):

    path = tmp_path / "profile.json"
    what = ["--model", "tiny", "--tokens", "1x6", "--rank", "3", "--steps", "1"]
    what += ["--methods", "keras-lora", "randlora-uniform", "--threads", "1"]
    program = [sys.executable, "-m", "benchmarks.profile_step", "--backend", BACKEND]
    done = subprocess.run(
        [*program, *what, "--out", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = {
        row["operation"]: row["ms"]
        for row in json.loads(path.read_text())["cases"][0]["rows"]
    }
    products = [name for name in rows if re.search("mm|dot|MatMul", name)]
    assert products and all(rows[p]["randlora-uniform"] >= 0 for p in products)
    total = rows.pop("all")
    for method, ms in total.items():
        assert sum(row[method] for row in rows.values()) == pytest.approx(ms)
