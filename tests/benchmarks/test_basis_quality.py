"""The comparison of bases: how its data is read, shuffled and summed up."""

import json

import numpy as np
import pytest

from benchmarks import basis_quality, quality_tasks, report

pytestmark = pytest.mark.any_backend


def test_reads_sentiment(tmp_path):
    folder = tmp_path / "sst2"
    folder.mkdir()
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text(f"a {name}\tfilm\t1\nbad\t0\n")
    training, held_out = quality_tasks._read_sst2(tmp_path)
    assert training == [("a train\tfilm", 1), ("bad", 0)]
    assert held_out[0] == ("a dev\tfilm", 1)


def test_reads_yes_or_no(tmp_path):
    folder = tmp_path / "commonsense"
    folder.mkdir()
    for part, answer in (("train", "true"), ("test", "false")):
        record = {
            "instruction": "Please answer … question: is it?\n\nAnswer format: …",
            "answer": answer,
        }
        (folder / f"boolq.{part}.json").write_text(json.dumps([record]))
    expected = [[("is it?", 1)], [("is it?", 0)]]
    assert quality_tasks._read_boolq(tmp_path) == expected


def test_a_task_with_files_asks_for_them():
    with pytest.raises(SystemExit, match="--data is needed for the task 'sst2'"):
        quality_tasks.build("sst2", None)


def test_batches_go_through_all_examples_in_an_order_of_the_seed():
    arrays = {"x": np.arange(10)}, np.arange(10), np.ones(10)
    task = quality_tasks.Task(None, {}, arrays, arrays, batch_size=5, chance=None)

    def first_two(seed):
        batches = task.batches(seed)
        return [next(batches)[1] for _ in range(2)]

    assert sorted(np.concatenate(first_two(0))) == list(range(10))
    np.testing.assert_array_equal(first_two(0), first_two(0))
    assert not np.array_equal(first_two(0), first_two(1))


def test_the_table_has_mean_and_deviation_over_the_seeds():
    rows = [
        {
            "basis": "uniform",
            "before": {"loss": 0.7, "accuracy": 0.5},
            "after": {"loss": loss, "accuracy": 0.75},
        }
        for loss in (0.25, 0.35)
    ]
    line = report.basis_quality(rows).splitlines()[2]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "uniform",
        "0.700 ± 0.000",
        "0.300 ± 0.071",
        "0.500 ± 0.000",
        "0.750 ± 0.000",
    ]


def test_a_run_is_written_with_its_machine_and_drawn(tmp_path, monkeypatch):
    def fake_run(task, basis, seed, args):
        measured = {"loss": 0.1 * seed, "accuracy": 0.5}
        return {"basis": basis, "seed": seed, "before": measured, "after": measured}

    monkeypatch.setattr(basis_quality, "run", fake_run)
    monkeypatch.setenv("KERAS_BACKEND", "restored after the test")
    path = tmp_path / "quality.json"
    arguments = ["--tasks", "python-help", "--seeds", "2", "--out", str(path)]
    assert basis_quality.main(arguments) == 0
    written = json.loads(path.read_text())
    assert written["machine"]["versions"]["keras"]
    assert [row["seed"] for row in written["cases"][0]["rows"]] == [0, 0, 1, 1]
    assert path.with_suffix(".png").stat().st_size > 1000
