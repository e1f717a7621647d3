"""`examples/commonsense`: questions, likelihoods against a loop, texts, records."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from backend import BACKEND, as_numpy
from command_line import UserError
from models import EXAMPLES, LLAMA
from text_data import TextDataError, alpaca_prompt

from examples import runs
from examples.commonsense import (
    __main__,
    answering,
    questions,
    study,
    tables,
)

pytestmark = pytest.mark.any_backend

LENGTH = 60
BATCH = 3


class Characters:
    """One token a character of ASCII."""

    start_token_id, end_token_id, pad_token_id = 1, 2, 0

    def tokenize(self, inputs):
        return [ord(character) for character in inputs]

    def detokenize(self, inputs):
        return "".join(map(chr, inputs))


TOKENIZER = Characters()
CHOICES = ("answer1", "answer2", "answer3")
QUESTIONS = [
    questions.Question("Which one? ", CHOICES, 2),
    questions.Question("Is it so? ", ("true", "false"), 1),
    questions.Question("And a longer prompt than what fits in: which? ", CHOICES, 0),
    questions.Question("Or this? ", ("solution1", "solution2"), 0),
]


class Reader(keras.Model):
    """Predicts a token from the sum of all before it: causal, and quick to compile."""

    def __init__(self):
        keras.utils.set_random_seed(7)
        names = ("token_ids", "padding_mask")
        inputs = {n: keras.Input((None,), dtype="int32", name=n) for n in names}
        wide = keras.initializers.RandomNormal(stddev=0.5)
        embedding = keras.layers.Embedding(128, 6, wide, name="embedding")
        x = embedding(inputs["token_ids"])
        x = x * keras.ops.cast(inputs["padding_mask"], "float32")[..., None]
        x = keras.ops.tanh(keras.ops.cumsum(x, axis=1))
        outputs = keras.layers.Dense(128, kernel_initializer=wide, name="head")(x)
        super().__init__(inputs=inputs, outputs=outputs)

    def compile(self, sampler=None, **options):
        super().compile(**options)


def llama():
    """Return a tiny Llama that writes ASCII."""
    import keras_hub

    keras.utils.set_random_seed(7)
    sizes = {**LLAMA, "vocabulary_size": 128, "num_layers": 1}
    backbone = keras_hub.models.Llama3Backbone(**sizes)
    model = keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)
    rng = np.random.default_rng(3)
    for weight in model.trainable_weights:  # far from uniform predictions
        weight.assign(as_numpy(weight) + 0.3 * rng.standard_normal(weight.shape))
    model.compile(optimizer=None, weighted_metrics=[], sampler="greedy")
    return model


def record(instruction, answer, answers):
    return {
        "instruction": f"{instruction}\n\nAnswer format: {'/'.join(answers)}",
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


@pytest.fixture
def data(tmp_path):
    """Write a small file of each kind; return the folder."""
    folder = tmp_path / "commonsense"
    folder.mkdir()
    answers = {"boolq": ("true", "false"), "piqa": ("solution1", "solution2")}
    for task in questions.TASKS:
        own = answers.get(task, ("answer1", "answer2", "answer3", "answer4"))
        records = [record(f"{task} {n}?", own[n % len(own)], own) for n in range(6)]
        for part in ("train", "test"):
            if (task, part) != ("piqa", "train"):
                path = folder / f"{task}.{part}.json"
                path.write_text(json.dumps(records))
    return tmp_path


# Questions.


def test_a_question_has_the_prompt_of_alpaca_and_its_answers(data):
    first = questions.read(data / "commonsense" / "boolq.test.json")[0]
    assert first.prompt == alpaca_prompt("boolq 0?\n\nAnswer format: true/false")
    assert (first.answers, first.correct) == (("true", "false"), 0)
    assert first.document.text == "the correct answer is true"


def test_subsets_are_fixed_shared_evenly_and_nested(data):
    all_of_them = questions.training_questions(data)
    assert len(all_of_them) == 4 * 6
    few, more = (questions.training_questions(data, count) for count in (6, 10))
    tasks = [
        sum(f"{task} " in q.prompt for q in few) for task in questions.TRAINED_TASKS
    ]
    assert tasks == [2, 2, 1, 1]
    assert set(few) < set(more) < set(all_of_them)
    assert few == questions.training_questions(data, 6)
    order = np.random.default_rng(0).permutation(6)
    assert [q.prompt for q in questions.test_questions(data, 2)["piqa"]] == [
        alpaca_prompt(f"piqa {n}?\n\nAnswer format: solution1/solution2")
        for n in order[:2]
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"output": "the correct answer is answer9"},
        {"output": "answer1"},
        {"instruction": "Which?"},
    ],
)
def test_a_record_that_is_no_question_is_named(tmp_path, change):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{**record("Which?", "answer1", CHOICES), **change}]))
    with pytest.raises(TextDataError, match=r"x\.json, record 1: expected 'Answer for"):
        questions.read(path)


@pytest.mark.parametrize(
    "text, answers, found",
    [
        ("the correct answer is answer2", CHOICES, "answer2"),
        ("answer5, no: answer1", CHOICES, "answer5"),  # as in LLM-Adapters
        ("It is false, not true.", ("true", "false"), "false"),
        ("answer1 solution2", ("solution1", "solution2"), "solution2"),
        ("perhaps B or A", ("A", "B"), "B"),
        ("Answer1", CHOICES, None),
        ("", ("true", "false"), None),
    ],
)
def test_the_first_answer_word_of_a_text(text, answers, found):
    question = questions.Question("", answers, 0)
    assert questions.answer_in(text, question) == found


# Rows.


def test_what_is_learned():
    rows = answering.learning_rows(QUESTIONS[:1], TOKENIZER, LENGTH)
    sentence = "the correct answer is answer3"
    text = "Which one? " + sentence
    expected = [1, *map(ord, text), 2]
    np.testing.assert_array_equal(rows.token_ids[0, : len(expected)], expected)
    assert not rows.token_ids[0, len(expected) :].any()
    learned = rows.targets[rows.weights == 1]
    np.testing.assert_array_equal(learned, [*map(ord, sentence), 2])


def test_the_beginning_of_a_long_prompt_is_cut():
    rows = answering.learning_rows(QUESTIONS[2:3], TOKENIZER, LENGTH)
    ids = [*rows.token_ids[0], rows.targets[0, -1]]
    text = QUESTIONS[2].prompt + "the correct answer is answer1"
    assert len(text) + 2 > len(ids)
    assert ids == [1, *map(ord, text[len(text) - LENGTH + 1 :]), 2]
    with pytest.raises(UserError, match=r"30 tokens .* Received: --cutoff 20"):
        answering.learning_rows(QUESTIONS[:1], TOKENIZER, 20)


def test_answers_of_one_token_need_one_row():
    counts = [len(answering.reading(q, TOKENIZER, LENGTH).pairs) for q in QUESTIONS]
    assert counts == [1, 2, 1, 1]
    single = answering.reading(QUESTIONS[0], TOKENIZER, LENGTH)
    assert single.shared == len("the correct answer is answer")
    assert single.last == [*map(ord, "123")]
    assert answering.shared_tokens([[1, 2], [1, 2, 3]]) == 2


# Likelihoods.


def log_probabilities(model, ids):
    """Return those of all tokens after each of a few, `(tokens, vocabulary)`."""
    padded = np.zeros((1, LENGTH + answering.NEW_TOKENS), "int32")
    padded[0, : len(ids)] = ids
    inputs = {"token_ids": padded, "padding_mask": np.ones_like(padded)}
    logits = model.predict(inputs, verbose=0)[0, : len(ids)].astype("float64")
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def by_hand(model, question):
    """Return each answer's log-likelihood and the right sentence's loss, in a loop."""
    lead = "the correct answer is "
    found = []
    for answer in question.answers:
        sentence = [*map(ord, lead + answer), 2]
        room = LENGTH + 1 - max(len(lead + other) + 1 for other in question.answers)
        prompt = [1, *map(ord, question.prompt)]
        if len(prompt) > room:
            prompt = [1, *prompt[1 - room :]]
        found_here = log_probabilities(model, prompt + sentence)
        tokens = [
            found_here[len(prompt) + i - 1, token] for i, token in enumerate(sentence)
        ]
        found.append(tokens)
    right = found[question.correct]
    # Words that all answers share count alike for each, so nothing need be left out.
    return [sum(tokens[:-1]) for tokens in found], -sum(right)


def test_likelihoods_are_those_of_a_loop():
    model = Reader()
    judgements = answering.judge(model, QUESTIONS, TOKENIZER, LENGTH, BATCH)
    hand = [by_hand(model, question) for question in QUESTIONS]
    for question, judgement, (expected, loss) in zip(
        QUESTIONS, judgements, hand, strict=True
    ):
        found = judgement.log_likelihoods
        assert len(found) == len(question.answers)
        np.testing.assert_allclose(
            found - found[0], np.array(expected) - expected[0], atol=2e-4
        )
        assert judgement.loss == pytest.approx(loss, rel=1e-4)
        assert judgement.tokens == len(question.written(question.correct)) + 1
    best = [np.argmax(expected) for expected, _ in hand]
    right = np.mean([q.correct == i for q, i in zip(QUESTIONS, best, strict=True)])
    assert answering.accuracy_of_likelihoods(QUESTIONS, judgements) == right


# Texts.


def test_texts_are_greedy():
    model = llama()
    texts = answering.write(model, QUESTIONS[:2], TOKENIZER, LENGTH, BATCH)
    for question, text in zip(QUESTIONS, texts, strict=False):
        assert 0 < len(text) <= answering.NEW_TOKENS
        ids = [1, *map(ord, question.prompt)]
        for written in text[:3]:
            best = int(log_probabilities(model, ids)[-1].argmax())
            assert written == chr(best)
            ids.append(best)


def test_accuracy_of_texts():
    texts = ["so it is answer3", "true", "", "solution1 or solution2"]
    assert answering.accuracy_of_texts(QUESTIONS, texts) == 0.5


# Runs.


@pytest.mark.every_backend
def test_a_run_and_its_table(monkeypatch, data, tmp_path, capsys):
    def load(preset):
        return Reader(), SimpleNamespace(tokenizer=TOKENIZER)

    def write(model, asked, *sizes):
        """Answer the questions of the last three tasks only."""
        assert len(asked) == len(questions.TASKS)
        return ["", "", *(q.answers[q.correct] for q in asked[2:])]

    monkeypatch.setattr(study, "load", load)
    monkeypatch.setattr(study, "write", write)
    out = tmp_path / "runs.jsonl"
    command = ["train", "--data", str(data), "--backend", BACKEND, "--out", str(out)]
    command += ["--methods", "none", "randlora-as-lora-1", "--seeds", "1"]
    command += ["--steps", "2", "--batch-size", "3", "--cutoff", str(LENGTH)]
    command += ["--train-examples", "8", "--test-examples", "2"]
    command += ["--generate-examples", "1"]
    for _ in range(2):  # the second time everything is there
        assert __main__.main(command) == 0
    base, adapted = runs.read(out)
    assert (base["method"], base["steps"], base["trained"]) == ("none", 0, 0)
    assert adapted["learning_rate"] == 1e-4 and adapted["trained"] > 0
    assert adapted["held_out_loss"] != base["held_out_loss"] > 0
    for way in ("likelihood", "generated"):
        rates = [adapted[f"{task}/{way}"] for task in questions.TASKS]
        assert adapted[f"mean/{way}"] == pytest.approx(np.mean(rates))
    assert rates == [0, 0, 1, 1, 1]
    capsys.readouterr()
    assert __main__.main(["tables", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert (
        "targets all-linear" in printed and printed.count("`randlora-as-lora-1`") == 2
    )
    assert "By likelihood" in printed and "By generated" in printed


def test_the_paper_names_five_layers_of_a_llama():
    model = EXAMPLES["llama3"].make()
    names = study.named_targets(model, ["paper"])
    assert names == [
        "query",
        "key",
        "value",
        "feedforward_intermediate_dense",
        "feedforward_output_dense",
    ]
    assert study.named_targets(model, ["query"]) == ["query"]
    with pytest.raises(UserError, match="name those of a Sequential yourself"):
        study.named_targets(keras.Sequential([keras.Input((2,))]), ["paper"])


def test_tables_have_mean_and_deviation():
    shared = dict.fromkeys(tables.SETTINGS, 4)
    records = [
        {
            **shared,
            "method": "full",
            "seed": seed,
            "steps": 5,
            "learning_rate": rate,
            "boolq/likelihood": value,
            "mean/likelihood": value,
        }
        for seed, rate, value in [(0, 1e-3, 0.5), (1, 1e-3, 0.7), (0, 1e-4, 0.25)]
    ]
    lines = tables.tables(records).splitlines()
    assert "`full, learning rate 0.0001`" in lines[6] and "25.0" in lines[6]
    assert "`full, learning rate 0.001`" in lines[7] and "60.0 ± 14.1" in lines[7]


def test_what_is_of_one_rank_stands_together():
    methods = ["lora-32", "vera-256", "randlora-as-lora-8", "none", "lora-8", "full"]
    shared = dict.fromkeys(tables.SETTINGS, 4) | {"steps": 5, "seed": 0}
    records = [
        {
            **shared,
            "method": method,
            "learning_rate": None if method == "none" else 1e-3,
            "mean/likelihood": 0.5,
        }
        for method in methods
    ]
    lines = tables.tables(records).splitlines()[6:]
    assert [line.split("`")[1] for line in lines] == [
        *("none", "full", "lora-8", "randlora-as-lora-8", "lora-32", "vera-256")
    ]


# Options.


def train_options(*more):
    return __main__.parse_arguments(["train", "--data", "x", *more])


def test_shards_share_the_runs_out():
    methods = ("--methods", "none", "lora-2", "full", "--seeds", "2")
    whole = __main__.planned(train_options(*methods))
    assert [(r["method"], r["seed"]) for r in whole] == [
        ("none", 0),
        ("lora-2", 0),
        ("full", 0),
        ("lora-2", 1),
        ("full", 1),
    ]
    parts = [
        __main__.planned(train_options(*methods, "--shard", f"{i}/2")) for i in (1, 2)
    ]
    assert sorted(map(str, parts[0] + parts[1])) == sorted(map(str, whole))


def test_learning_rates_by_name_or_beginning():
    given = {"lora-16": 0.5, "randlora": 0.25}
    names = ("lora-16", "lora-8", "randlora-as-lora-16", "full")
    rates = [__main__.learning_rate(name, given) for name in names]
    assert rates == [0.5, 3e-4, 0.25, 2e-5]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--shard", "3/2"], "I/N with I from 1 to N. Received: 3/2"),
        (
            ["--learning-rate", "full"],
            "METHOD=RATE, as in lora-16=1e-3. Received: full",
        ),
        (["--learning-rate", "full=-1"], "METHOD=RATE"),
        (["--steps", "0"], "must be positive. Received: 0"),
        (["--test-examples", "-1"], "must not be negative"),
        (["--methods", "ia-3"], "No learning rate for the method 'ia-3'"),
        (["--data", "/nowhere"], "Cannot read the text file /nowhere/commonsense/ARC"),
    ],
)
def test_a_wrong_option_is_one_line(options, message, capsys, tmp_path):
    command = ["train", "--data", "x", "--out", str(tmp_path / "out"), *options]
    try:
        status = __main__.main([*command, "--backend", BACKEND])
    except SystemExit as stopped:
        status = stopped.code
    errors = capsys.readouterr().err
    assert status == 2 and message in errors and errors.count("\n") == 1
