"""Records of runs: what is kept, what is not run again, the tables made of them."""

import importlib
import json
import re

import pytest

from examples import runs

pytestmark = pytest.mark.any_backend


def test_a_record_says_what_was_run_and_where():
    record = runs.measured(lambda: {"accuracy": 0.5}, method="full", seed=3)
    assert (record["method"], record["seed"], record["accuracy"]) == ("full", 3, 0.5)
    assert 0 <= record["seconds"] < 60 and record["peak_bytes"] > 1e6
    assert record["machine"]["versions"]["keras"]


def test_a_run_that_is_there_is_not_run_again(tmp_path):
    path, calls = tmp_path / "new" / "runs.jsonl", []

    def run():
        calls.append(1)
        return {"accuracy": len(calls) / 10}

    for seed in (0, 1, 0):
        record = runs.run_once(path, run, method="lora-4", seed=seed)
    assert len(calls) == 2 and record["accuracy"] == 0.1
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [
        0,
        1,
    ]
    assert runs.matching(runs.read(path), seed=1)[0]["accuracy"] == 0.2
    assert runs.read(tmp_path / "none.jsonl") == []


def test_a_table_has_mean_and_deviation():
    records = [
        {"method": method, "seed": seed, "accuracy": accuracy, "trained": 2_000_000}
        for method, seed, accuracy in [
            ("full", 0, 0.9),
            ("full", 1, 0.8),
            ("head", 0, 0.5),
        ]
    ]
    columns = {"accuracy, %": ("accuracy", 1, 0.01), "trained, M": ("trained", 2, 1e6)}
    lines = runs.table(records, "method", columns).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["method", "runs", "accuracy, %", "trained, M"]
    assert cells[2] == ["`full`", "2", "85.0 ± 7.1", "2.00"]
    assert cells[3] == ["`head`", "1", "50.0", "2.00"]


@pytest.mark.parametrize(
    "values, text", [([], "–"), ([1.0, 1.0], "1.000"), ([1, 2], "1.500 ± 0.707")]
)
def test_spread(values, text):
    assert runs.spread(values) == text


def test_a_tuning_table_has_a_column_for_each_rate():
    records = [
        {"method": method, "learning_rate": rate, "loss": loss}
        for method, rate, loss in [
            ("full", 2e-3, 0.5),
            ("full", 1e-4, 0.4),
            ("head", 1e-4, 0.6),
        ]
    ]
    lines = runs.tuning_table(records, "loss").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["method", "runs", "0.0001", "0.002"]
    assert cells[2] == ["`full`", "2", "0.400", "0.500"]
    assert cells[3] == ["`head`", "1", "0.600", "–"]


@pytest.mark.parametrize("example", ["commonsense", "sst2", "vision"])
def test_tables_of_what_is_published_where_there_is_nothing_else(
    example, capsys, monkeypatch
):
    monkeypatch.setenv("KERAS_BACKEND", "restored after the test")
    main = importlib.import_module(f"examples.{example}.__main__").main
    assert main(["tables", "--out", "no/such/file.jsonl"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "no records in no/such/file.jsonl" in message
    published = re.search(r"`--out ([^`]*runs\.jsonl)`", message)[1]
    assert main(["tables", "--out", published]) == 0
    assert " ± " in capsys.readouterr().out


def test_new_runs_stay_out_of_what_is_published():
    for example in ("commonsense", "sst2", "vision"):
        module = importlib.import_module(f"examples.{example}.__main__")
        assert module.OUT.parts[0] == "runs" and module.PUBLISHED.is_file()
