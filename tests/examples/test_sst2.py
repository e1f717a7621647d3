"""The comparison of methods on SST-2, with a tiny BERT and made-up sentences."""

import json
import re

import keras
import numpy as np
import pytest
from keras import ops
from models import EXAMPLES

from examples import methods
from examples.command_line import UserError
from examples.reference_layers import ADAPTERS
from examples.sst2 import __main__ as command
from examples.sst2 import data, experiments, train
from examples.sst2.tables import tables
from keras_randlora.update.formula import UpdateShape

pytestmark = pytest.mark.any_backend

LENGTH = 6
OPTIONS = experiments.Options(
    seeds=2, steps=100, batch_size=16, sequence_length=LENGTH, backend="jax"
)


# The data.


def write_corpus(folder, train_size=40, dev_size=11):
    """Write files whose positive sentences begin with "g", the negative with "b"."""
    (folder / "sst2").mkdir()
    for name, size in (("train", train_size), ("dev", dev_size)):
        lines = [f"{'bg'[i % 2]} film {i} of {name}\t{i % 2}" for i in range(size)]
        (folder / "sst2" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def encode(texts, length):
    """Make tokens of characters, as many as fit."""
    ids = np.zeros((len(texts), length), "int32")
    for row, text in zip(ids, texts, strict=True):
        codes = [ord(c) % 20 + 1 for c in text[:length]]
        row[: len(codes)] = codes
    masks = {"padding_mask": (ids > 0).astype("int32"), "segment_ids": 0 * ids}
    return {"token_ids": ids, **masks}


def examples(count):
    return data.Examples({"token_ids": np.arange(count)[:, None]}, np.arange(count) % 2)


def test_sentences_and_labels_are_read(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("a good film\t1\ntabs\tin it\x85 too\t0\n", encoding="utf-8")
    texts, labels = data.read(path)
    assert texts == ["a good film", "tabs\tin it\x85 too"]
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize("line", ["no label", "two\t2", "\t1", ""])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "train.tsv"
    path.write_text(f"fine\t1\n{line}\nfine\t0\n")
    with pytest.raises(UserError, match=r"train\.tsv, line 2: .*Received: "):
        data.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read .*dev\.tsv: No such file"):
        data.read(tmp_path / "dev.tsv")


def test_the_validation_part_is_not_trained_on():
    kept, held_out = data.hold_out(examples(50))
    rows = [set(part.inputs["token_ids"][:, 0].tolist()) for part in (kept, held_out)]
    assert len(rows[0]) == 45 and rows[0] | rows[1] == set(range(50))
    assert data.hold_out(examples(50))[1].labels.tolist() == held_out.labels.tolist()


def test_budgets():
    few = data.within_budget(examples(50), "3", seed=0)
    assert sorted(few.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert (few.inputs["token_ids"][:, 0] % 2).tolist() == few.labels.tolist()
    other = data.within_budget(examples(50), "3", seed=1)
    assert few.inputs["token_ids"].tolist() != other.inputs["token_ids"].tolist()
    half, everything = (
        data.within_budget(examples(50), share, seed=0) for share in ("50%", "100%")
    )
    assert len(set(half.inputs["token_ids"][:, 0])) == 25
    assert len(set(everything.inputs["token_ids"][:, 0])) == 50


@pytest.mark.parametrize("budget", ["26", "0", "some", "-1%"])
def test_a_bad_budget(budget):
    with pytest.raises(UserError, match="Received: "):
        data.within_budget(examples(50), budget, seed=0)


# The lists of runs.


def tuned(*losses, method="full", **changes):
    """Return records of `learning-rates`: `(rate, validation loss)` each."""
    shared = {**vars(OPTIONS), "experiment": "learning-rates", "method": method}
    return [
        {**shared, "learning_rate": rate, "validation_loss": loss, **changes}
        for rate, loss in losses
    ]


def everything_tuned():
    return [
        record
        for method in experiments.EXPERIMENTS["learning-rates"]
        for record in tuned((1e-3, 0.5), (1e-2, 0.4), method=method)
    ]


def test_every_method_tries_the_same_rates_once():
    planned = experiments.planned("learning-rates", OPTIONS, [])
    tried = {}
    for run in planned:
        assert (run.seed, run.budget, run.steps) == (0, "100%", 100)
        tried.setdefault(run.method, []).append(run.learning_rate)
    assert len(planned) == len(set(planned))
    assert set(map(tuple, tried.values())) == {experiments.RATES}
    for names in experiments.EXPERIMENTS.values():
        assert {experiments.tuned_as(name) for name in names} <= set(tried)


@pytest.mark.parametrize("name", ["methods", "table3", "table4"])
def test_methods_are_run_with_each_seed(name):
    planned = experiments.planned(name, OPTIONS, everything_tuned())
    assert [(run.seed, run.method) for run in planned] == [
        (seed, method) for seed in (0, 1) for method in experiments.EXPERIMENTS[name]
    ]
    assert {(r.learning_rate, r.steps, r.budget) for r in planned} == {
        (1e-2, 100, "100%")
    }


def test_few_shot_runs_go_through_their_data():
    planned = experiments.planned("few-shot", OPTIONS, everything_tuned())
    assert len(planned) == 2 * 6 * len(experiments.FEW_SHOT_METHODS)
    steps = {run.budget: run.steps for run in planned}
    assert steps == {"1": 100, "2": 100, "4": 100, "16": 100, "50%": 216, "100%": 432}


def test_table3_compares_ranks_at_about_equal_numbers():
    shapes = []
    for name in experiments.EXPERIMENTS["table3"]:
        rank, bases, _ = map(int, re.findall(r"\d+", name))
        shapes.append(UpdateShape.of_kernel(384, 1536, rank, bases))
    assert [shape.columns for shape in shapes] == [48, 192, 384]
    numbers = [shape.trainable for shape in shapes]
    assert max(numbers) < 1.02 * min(numbers)


def test_table4_has_all_bases_at_one_rank():
    assert experiments.EXPERIMENTS["table4"] == (
        "randlora-as-lora-16:2",
        "randlora-as-lora-16-normal:2",
        "randlora-as-lora-16-binary:2",
        "randlora-as-lora-16-ternary6:2",
        "randlora-as-lora-16-ternary28:2",
        "randlora-as-lora-16-ternary100:2",
        "randlora-as-lora-16-ternary200:2",
        "randlora-as-lora-16-kronecker:2",
    )


@pytest.mark.parametrize(
    "name", dict.fromkeys(sum(experiments.EXPERIMENTS.values(), ()))
)
def test_every_method_can_be_put_on_a_model(name):
    model = EXAMPLES["mlp"].build()
    head = dict(exclude=["head"], also_train=["head"])
    trained = methods.adapt(model, name, others=ADAPTERS, **head)
    assert trained >= 5 * 3 + 3


def test_the_rate_with_the_lowest_validation_loss_is_chosen():
    records = tuned((1e-4, 0.6), (1e-3, 0.3), (1e-2, 0.9))
    records += tuned((1e-4, 0.0), steps=50) + tuned((1e-2, 0.0), backend="torch")
    assert experiments.chosen_rate("full", OPTIONS, records) == 1e-3
    records += tuned((1e-3, 0.9))
    assert experiments.chosen_rate("full", OPTIONS, records) == 1e-4


def test_an_unfinished_search_chooses_nothing():
    records = tuned((1e-3, 0.3), (1e-2, 0.9)) + tuned((1e-3, 0.1), method="head")
    for method, tried in (("head", "1 of 2"), ("dora-16", "0 of 2")):
        with pytest.raises(UserError, match=rf"'{method}' .*{tried} rates were tried"):
            experiments.chosen_rate(method, OPTIONS, records)


# The tables.


def cells(table):
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def record(run, accuracy):
    measured = {"dev_loss": 0.25, "train_loss": 0.125, "trained": 1234, "seconds": 60}
    return {**vars(run), "dev_accuracy": accuracy, **measured}


def test_tables_have_mean_and_deviation_of_each_method():
    planned = experiments.planned("table3", OPTIONS, everything_tuned())
    records = [record(run, 0.8 + run.seed / 10) for run in planned]
    text = tables(records[::-1])  # in whatever order they were finished
    assert text.startswith("## table3\n\nbudget 100%, 100 steps, batches of 16, 6 ")
    head, _, *lines = cells(text)
    assert [line[0] for line in lines] == [
        f"`{method}`" for method in experiments.EXPERIMENTS["table3"]
    ]
    found = dict(zip(head, lines[0], strict=True))
    assert found["runs"] == "2" and found["dev accuracy, %"] == "85.0 ± 7.1"
    assert found["dev loss"] == "0.250" and found["trainable"] == "1,234"
    assert found["learning rate"] == "0.0100" and found["peak, MB"] == "–"


def test_runs_of_other_settings_stand_apart():
    first, second = experiments.planned("methods", OPTIONS, everything_tuned())[:2]
    text = tables([record(first, 0.5), {**record(second, 0.6), "steps": 7}])
    assert len(cells(text)) == 6 and "7 steps" in text


def test_tables_of_rates_and_of_budgets():
    few = experiments.planned("few-shot", OPTIONS, everything_tuned())
    records = [
        *tuned((1e-3, 0.5), (1e-2, 0.25), budget="100%", seed=0),
        *(record(run, len(run.budget) / 10) for run in few),
    ]
    text = tables(records)
    assert cells(text)[0] == ["method", "runs", "0.001", "0.01"]
    assert cells(text)[2] == ["`full`", "2", "0.500", "0.250"]
    few = text.partition("## few-shot")[2]
    assert cells(few)[0][2:] == [
        *(f"{n} per class" for n in (1, 2, 4, 16)),
        "50%",
        "100%",
    ]
    assert cells(few)[2][2:] == ["10.0", "10.0", "10.0", "20.0", "30.0", "40.0"]


# Training a tiny BERT.


def tiny_bert():
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=23,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        max_sequence_length=LENGTH,
        dropout=0.0,
    )
    return keras_hub.models.BertTextClassifier(backbone, num_classes=2, dropout=0.0)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Put a tiny BERT in MiniLM's place, and characters in that of tokens."""
    monkeypatch.setattr(train, "load_model", tiny_bert)
    monkeypatch.setattr(data, "encode", encode)
    monkeypatch.setattr(train, "forget_compiled", lambda: None)  # for speed
    yield write_corpus(tmp_path)
    data.load.cache_clear()


def pretend_to_fit(model, examples, **options):
    """Change what is trained as training would, without compiling anything."""
    rng = np.random.default_rng(options["seed"])
    for variable in model.trainable_variables:
        shift = 0.3 * rng.standard_normal(variable.shape)
        variable.assign(ops.convert_to_numpy(variable) + shift)
    return {"train_loss": 0.5, "step_seconds": 0.1}


def arguments(folder, *given):
    return [
        *given,
        *("--data", str(folder), "--out", str(folder / "runs.jsonl")),
        *("--backend", keras.backend.backend(), "--sequence-length", str(LENGTH)),
        *("--steps", "4", "--batch-size", "4"),
    ]


@pytest.mark.every_backend
def test_from_the_search_to_the_tables(tiny, capsys, monkeypatch):
    search = ["learning-rates", "--rates", "0.05", "--methods", "matrixlora-2"]
    assert command.main(arguments(tiny, *search)) == 0
    monkeypatch.setattr(train, "fit", pretend_to_fit)
    monkeypatch.setattr(train, "evaluate", lambda *_: (0.75, 0.25))
    again = ["methods", "--seeds", "1", "--methods", "matrixlora-2"]
    assert command.main(arguments(tiny, *again)) == 0
    lines = (tiny / "runs.jsonl").read_text().splitlines()
    assert command.main(arguments(tiny, *again)) == 0  # nothing is run again
    assert (tiny / "runs.jsonl").read_text().splitlines() == lines
    searched, judged = map(json.loads, lines)
    assert searched["examples"] == 36 and "dev_loss" not in searched
    assert 0 <= searched["validation_accuracy"] <= 1 and searched["update_rank"] == 2
    assert searched["validation_loss"] > 0 and searched["train_loss"] > 0
    assert judged["examples"] == 40 and judged["learning_rate"] == 0.05
    assert (judged["dev_accuracy"], judged["dev_loss"]) == (0.75, 0.25)
    assert judged["peak_bytes"] > 1e6
    # Kernels 8×8 (four) and 8×12 (two); the head 8×8 and 8×2.
    assert judged["beside_head"] == 4 * 2 * (8 + 8) + 2 * 2 * (8 + 12)
    assert judged["trained"] - judged["beside_head"] == 8 * 8 + 8 + 8 * 2 + 2
    capsys.readouterr()
    assert command.main(["tables", "--out", str(tiny / "runs.jsonl")]) == 0
    text = capsys.readouterr().out
    assert "## learning-rates" in text and "## methods" in text


@pytest.mark.parametrize(
    "given, message",
    [
        (["methods"], "No learning rate is chosen for 'full'"),
        (["methods", "--methods", "fulll", "--learning-rate", "1"], "A method is full"),
        (["table3"], "No learning rate"),
    ],
)
def test_mistakes_are_one_line(tiny, capsys, given, message):
    assert command.main(arguments(tiny, *given)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_data_is_needed(capsys):
    with pytest.raises(SystemExit):
        command.main(["methods"])
    assert "`--data` is needed for methods" in capsys.readouterr().err


def test_rates_to_try_are_not_one_rate_for_all(capsys):
    with pytest.raises(SystemExit):
        command.main(["learning-rates", "--data", "x", "--learning-rate", "1e-3"])
    assert "learning-rates tries `--rates`" in capsys.readouterr().err


class Counting:
    """A model that has logits ready, and takes whole batches only."""

    logits = np.random.default_rng(0).standard_normal((11, 2)).astype("float32")

    def predict(self, inputs, batch_size, verbose):
        rows = inputs["token_ids"][:, 0]
        assert len(rows) % batch_size == 0
        return self.logits[rows]


def test_evaluation_counts_each_sentence_once():
    logits, labels = Counting.logits.astype("float64"), examples(11).labels
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    accuracy, loss = train.evaluate(Counting(), examples(11), batch_size=4)
    assert accuracy == np.mean(shares.argmax(axis=1) == labels)
    assert loss == pytest.approx(-np.log(shares[np.arange(11), labels]).mean())


def test_the_same_seed_is_the_same_head(tiny):
    heads = []
    for seed, method in ((1, "full"), (1, "lora-2"), (2, "full")):
        model = train.fresh_model(seed)
        train.adapt(model, method, seed)
        heads.append(ops.convert_to_numpy(model.get_layer("logits").kernel))
    np.testing.assert_array_equal(heads[0], heads[1])
    assert np.abs(heads[0] - heads[2]).max() > 0


def test_merged_weights_do_what_the_trained_model_does(tiny):
    from examples.sst2 import figures

    plain = train.fresh_model(0)
    inputs, start = data.load(tiny, LENGTH).dev.inputs, plain.get_weights()
    before = ops.convert_to_numpy(plain(inputs))
    for method in ("full", "lora-2", "randlora-2", "dora-2"):
        model = train.fresh_model(0)
        train.adapt(model, method, 0)
        pretend_to_fit(model, None, seed=0)
        expected = ops.convert_to_numpy(model(inputs))
        assert np.abs(before - expected).max() > 0.01
        plain.set_weights(figures.merged_weights(model, plain))
        found = ops.convert_to_numpy(plain(inputs))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        plain.set_weights(start)


def test_figures(tiny, capsys, monkeypatch):
    monkeypatch.setattr(train, "fit", pretend_to_fit)
    given = ["figures", "--learning-rate", "0.05", "--lora", "matrixlora-2"]
    given += ["--randlora", "randlora-2", "--sentences", "8", "--resolution", "2"]
    page = tiny / "plane.html"
    given += ["--folder", str(tiny / "new"), "--html", str(page)]
    assert command.main(arguments(tiny, *given)) == 0
    for name in ("spectra", "cka", "loss_plane"):
        picture = tiny / "new" / f"sst2_{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert page.stat().st_size > 1e6
    found = {line[0]: line[1:] for line in cells(capsys.readouterr().out)}
    assert float(found["before training"][0]) <= 1
