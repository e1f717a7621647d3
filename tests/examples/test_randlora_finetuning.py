"""`examples/randlora_finetuning.py` on a tiny model that reads ASCII."""

import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import checkpoints
import finetuning_data
import finetuning_options
import keras
import numpy as np
import pytest
import randlora_finetuning as script
from backend import BACKEND, as_numpy
from command_line import UserError
from text_data import alpaca_prompt

import keras_randlora as kr
from keras_randlora.data import Tokens, read_records

START, END = 1, 2
STEPS = 4


class Characters:
    """One token a character of ASCII."""

    start_token_id, end_token_id, pad_token_id = START, END, 0

    def tokenize(self, inputs):
        if isinstance(inputs, str):
            return [ord(character) for character in inputs]
        return [self.tokenize(text) for text in inputs]

    def id_to_token(self, id):
        return chr(id)


def bigrams():
    """Return a model that reads one token to predict the next, the same each time.

    It compiles in a tenth of a transformer's time; kernels "query" 12×8, "value" 8×12.
    """
    keras.utils.set_random_seed(7)
    names = ("token_ids", "padding_mask")
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    x = keras.layers.Embedding(128, 12, name="embedding")(inputs["token_ids"])
    x = x * keras.ops.cast(inputs["padding_mask"], "float32")[..., None]
    x = keras.layers.Dense(8, activation="tanh", name="query")(x)
    x = keras.layers.Dense(12, activation="tanh", name="value")(x)
    outputs = keras.layers.Dense(128, name="head")(x)
    return keras.Model(inputs, outputs, name="bigrams")


def reply(model, preprocessor, prompt):
    """Return the logit of the token after a prompt, as text: that of the weights."""
    ids = np.array([preprocessor.tokenizer.tokenize(prompt)])
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    return f"{as_numpy(model(inputs))[0, -1].max():.4f}"


@pytest.fixture
def tiny(monkeypatch):
    """Let the script load that model, whatever is asked for."""
    preprocessor = types.SimpleNamespace(tokenizer=Characters())
    monkeypatch.setattr(script, "load", lambda *_, **__: (bigrams(), preprocessor))
    monkeypatch.setattr(script, "reply", reply)


@pytest.fixture(scope="module")
def plain():
    """Return what the script loads, for runs that must leave it as it is."""
    return bigrams(), types.SimpleNamespace(tokenizer=Characters())


def parse(*options):
    return script.parse_arguments([*map(str, options)])


# Rows.


def tokens_of(prompt, answer):
    """Return the tokens of a prompt after the start, and of an answer to its end."""
    prompt, answer = [START, *map(ord, prompt)], [*map(ord, answer), END]
    learned = [False] * len(prompt) + [True] * len(answer)
    return Tokens([*prompt, *answer], learned)


def test_the_templates_are_those_of_the_package():
    from keras_randlora.data import TEMPLATES

    assert finetuning_options.TEMPLATES == tuple(TEMPLATES)


def test_only_the_answer_is_learned():
    rows = finetuning_data.answer_rows([tokens_of("Q: ", "yes")], Characters(), 10)
    assert rows.token_ids[0].tolist() == [START, *map(ord, "Q: yes"), END, 0, 0]
    assert rows.targets[0].tolist() == [*map(ord, "Q: yes"), END, 0, 0, 0]
    assert rows.weights[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]


def test_long_records_are_cut_and_counted(capsys):
    pairs = [("Q: ", "yes"), ("Question", "no"), ("", "a")]
    examples = [tokens_of(*pair) for pair in pairs]
    rows = finetuning_data.answer_rows(examples, Characters(), 5)
    assert rows.token_ids.tolist() == [
        [START, *map(ord, "Q: y")],
        [START, ord("a"), END, 0, 0],
    ]
    assert rows.targets[0].tolist() == [*map(ord, "Q: ye")]
    assert rows.weights.tolist() == [[0, 0, 0, 1, 1], [1, 1, 0, 0, 0]]
    assert "2 of 3 records are longer than 5 tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="--cutoff_len 5; .* has 9 tokens"):
        finetuning_data.answer_rows(examples[1:2], Characters(), 5)


def test_validation_records_are_kept_out_of_training():
    records = read_records(
        [{"prompt": f"Q{i % 8}: ", "completion": "yes"} for i in range(10)]
    )
    training, kept_back = finetuning_data.set_aside(records, 3)
    assert [r.turns for r in kept_back] == [records[i].turns for i in (0, 4, 9)]
    prompts = {record.turns[0].content for record in training}
    assert prompts == {f"Q{i}: " for i in (2, 3, 5, 6, 7)}  # 9 is 1 again
    assert [r.where for r in finetuning_data.set_aside(records, 0.2)[1]] == [
        "records[0]",
        "records[9]",
    ]
    assert finetuning_data.set_aside(records, 0) == (records, [])
    with pytest.raises(UserError, match="--val_set_size 10 leaves nothing"):
        finetuning_data.set_aside(records, 10)


def test_padding_to_whole_batches_keeps_the_mean():
    examples = [tokens_of("Q: ", text) for text in ("yes", "no", "o")]
    rows = finetuning_data.answer_rows(examples, Characters(), 10)
    whole = finetuning_data.whole_batches(rows, 2)
    assert len(whole.token_ids) == 4
    assert not whole.weights[3].any()
    losses = np.random.default_rng(0).random(rows.weights.shape)
    expected = (losses * rows.weights).sum() / rows.weights.sum()
    padded = np.concatenate([losses, losses[:1]])
    assert np.mean(padded * whole.weights) == pytest.approx(expected, rel=1e-6)


def test_each_row_is_used_before_one_comes_again():
    order = script.order_of_rows(0, 5)
    rounds = [[int(next(order)) for _ in range(5)] for _ in range(3)]
    assert all(sorted(rows) == list(range(5)) for rows in rounds)
    assert rounds[0] != rounds[1]


def test_plain_text_becomes_windows(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("Once upon a time there was a word. " * 40)
    options = parse("--data_path", path, "--cutoff_len", 16, "--val_set_size", 3)
    preprocessor = types.SimpleNamespace(tokenizer=Characters())
    data = script.prepare(script.read(path), preprocessor, options)
    assert data.training.token_ids.shape[1] == 16
    assert len(data.validation.token_ids) == 4  # three and one without weight
    assert [bool(w.any()) for w in data.validation.weights] == [True] * 3 + [False]
    assert data.template is None and data.asked[0].prompt.startswith("Once upon")


# Whole runs.


@pytest.fixture
def command(tmp_path):
    """Return a function that gives the arguments of a run that writes to a folder."""
    records = [
        {"instruction": f"Say {i}.", "output": f"{i} it is"} for i in range(100, 112)
    ]
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))

    def arguments(folder, *more):
        options = ["--data_path", path, "--output_dir", tmp_path / folder]
        options += ["--cutoff_len", len(alpaca_prompt("Say 100.")) + 10]
        options += ["--batch_size", 2, "--eval_step", 1, "--save_step", 2]
        options += ["--max_steps", STEPS, "--val_set_size", 2, "--rank", 4]
        options += ["--randlora_dropout", 0.2, "--learning_rate", 0.01]
        options += ["--randlora_target_modules", "query,value"]
        return [*map(str, [*options, "--backend", BACKEND, *more])]

    return arguments


def content(folder):
    """Return what a run wrote, but for times."""
    record = json.loads((folder / "run.json").read_text())
    kept = {k: record[k] for k in ("training", "validation", "best", "trained", "step")}
    return kept, (folder / "adapter.safetensors").read_bytes()


def test_a_resumed_run_equals_one_without_interruption(
    tiny, command, tmp_path, monkeypatch, capsys
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    save_checkpoint = script.save_checkpoint

    def save_and_copy(*arguments, finished):
        """Leave in a second folder what a run has that is killed here."""
        save_checkpoint(*arguments, finished=finished)
        if not finished:
            shutil.copytree(whole, parts)

    monkeypatch.setattr(script, "save_checkpoint", save_and_copy)
    merged = tmp_path / "merged.keras"
    assert script.main(command("whole", "--merge_to", str(merged))) == 0
    assert [x.name for x in checkpoints.checkpoints(parts)] == ["checkpoint-2"]
    refused = {
        "pass --resume to continue it": command("parts"),
        "had seed=0. Received: seed=5": command("parts", "--resume", "--seed", "5"),
    }
    with monkeypatch.context() as before_loading:
        before_loading.setattr(script, "load", None)
        for message, arguments in refused.items():
            assert script.main(arguments) == 2
            assert message in capsys.readouterr().err
    assert script.main(command("parts", "--resume")) == 0

    kept, adapter = content(whole)
    assert content(parts) == (kept, adapter)
    assert len(kept["training"]) == kept["step"] == STEPS
    assert len(set(kept["training"])) == STEPS
    losses = dict(kept["validation"])
    assert list(losses) == [0, 1, 2, 3, 4]
    assert kept["best"] == min(losses[step] for step in range(1, STEPS + 1))
    files = {"adapter.safetensors", "curves.png", "run.json", f"checkpoint-{STEPS}"}
    assert {path.name for path in parts.iterdir()} == files

    record = json.loads((whole / "run.json").read_text())
    assert record["rows"] == {"training": 10, "validation": 2}
    assert record["machine"]["versions"]["keras"] and record["peak_bytes"] > 0
    best = bigrams()
    report = kr.load_adapter(best, whole / "adapter.safetensors")
    assert report.trainable == record["trained"]
    preprocessor = types.SimpleNamespace(tokenizer=Characters())
    for asked, number in zip(record["answers"], (100, 111), strict=True):
        assert asked["prompt"] == alpaca_prompt(f"Say {number}.")
        assert asked["expected"] == f"{number} it is"
        assert asked["before"] == reply(bigrams(), preprocessor, asked["prompt"])
        assert asked["after"] == reply(best, preprocessor, asked["prompt"])
        assert asked["before"] != asked["after"]
    kr.merge_randlora(best)
    loaded = keras.saving.load_model(merged, compile=False)
    for ours, theirs in zip(best.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(as_numpy(ours), as_numpy(theirs))


def test_the_run_card_has_the_values_that_were_used(tiny, command, tmp_path):
    options = ["--prompt", "Say 7.", "--answers", "0", "--max_steps", "9"]
    options += ["--num_epochs", "0.2", "--val_set_size", "0"]
    assert script.main(command("out", *options)) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    used = record["options"]
    assert None not in used.values()
    expected = {
        "randlora_alpha": 80.0,
        "basis": "uniform",
        "randlora_target_modules": "query,value",
        "template": "alpaca",
        "dtype": "float32",
        "max_steps": 2,
        "weight_decay": 0.0,
        "warmup_ratio": 0.1,
    }
    assert {name: used[name] for name in expected} == expected
    assert used["device"] in ("cpu", "gpu") and "quantize" not in used
    assert [asked["prompt"] for asked in record["answers"]] == [alpaca_prompt("Say 7.")]


def test_an_interrupted_run_resumes(tiny, command, tmp_path, monkeypatch):
    """Interrupted in the first pass of the second step of a call of `fit`."""
    options = ["--randlora_dropout", "0", "--eval_step", "4", "--save_step", "3"]
    options += ["--gradient_accumulation_steps", "2"]

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as once:
        once.setattr(script, "loggers", lambda options: [Interrupt()])
        assert script.main(command("parts", *options)) == script.INTERRUPTED
    assert signal.getsignal(signal.SIGINT) is handler
    (checkpoint,) = checkpoints.checkpoints(tmp_path / "parts")
    assert checkpoint.name == "checkpoint-2"
    assert script.main(command("parts", "--resume", *options)) == 0
    assert script.main(command("whole", *options)) == 0
    (resumed, _), (whole, _) = content(tmp_path / "parts"), content(tmp_path / "whole")
    np.testing.assert_allclose(resumed["training"], whole["training"], rtol=1e-5)
    assert [step for step, _ in resumed["validation"]] == [0, 4]


def test_evaluations_and_checkpoints_have_their_own_steps():
    options = parse("--eval_step", 4, "--save_step", 3)
    stops = [0]
    while stops[-1] < 10:
        stops.append(script.next_stop(stops[-1], 10, options))
    assert stops == [0, 3, 4, 6, 8, 9, 10]


def test_a_finished_run_is_resumed_for_more_steps_or_replaced(
    tiny, command, tmp_path, monkeypatch
):
    first = [*command("out", "--max_steps", "2")]
    assert script.main(first) == 0
    longer = command("out", "--max_steps", "3", "--resume")
    assert script.main(longer) == 0
    kept, _ = content(tmp_path / "out")
    assert len(kept["training"]) == 3
    assert [x.name for x in checkpoints.checkpoints(tmp_path / "out")] == [
        "checkpoint-3"
    ]
    assert script.main(first) == 0  # anew
    assert content(tmp_path / "out")[0]["training"] == kept["training"][:2]
    assert "backend" not in script.settings(parse())  # may be another one


def test_a_step_in_several_passes_is_the_same_step(tiny, command, tmp_path):
    """Up to the rate, which Keras takes of the last pass."""
    found = {}
    for passes in ("1", "2"):
        more = ["--gradient_accumulation_steps", passes, "--randlora_dropout", "0"]
        assert script.main(command(passes, *more)) == 0
        found[passes], _ = content(tmp_path / passes)
        assert len(found[passes]["training"]) == found[passes]["step"] == STEPS
    first, second = (found[passes]["training"] for passes in ("1", "2"))
    np.testing.assert_allclose(second[0], first[0], rtol=1e-5)
    np.testing.assert_allclose(second, first, rtol=0.02)


def test_the_rate_falls_to_zero_with_the_last_step():
    rates = {}
    for passes in (1, 4):
        model = bigrams()
        options = parse("--gradient_accumulation_steps", passes, "--batch_size", 4)
        script.compile_for(model, 50, options)
        rate = model.optimizer._learning_rate
        rates[passes] = [
            float(as_numpy(rate(np.float32(step * passes)))) for step in range(51)
        ]
    assert np.argmax(rates[1]) == np.argmax(rates[4]) == 5
    np.testing.assert_allclose(rates[4][5:], rates[1][5:], atol=1e-9)
    assert rates[4][50] == pytest.approx(0, abs=1e-9)


def test_a_run_stops_early_and_keeps_the_best(tiny, command, monkeypatch, tmp_path):
    planned = iter([3.0, 2.0, 2.5, 2.4])
    saved = []

    def fit(*_):
        return [1.0], next(planned)

    monkeypatch.setattr(script, "fit", fit)
    monkeypatch.setattr(script, "evaluate", lambda *_: 1.0)
    monkeypatch.setattr(script, "save_adapter", lambda *_: saved.append(1))
    monkeypatch.setattr(script, "save_checkpoint", lambda *_, **__: None)
    patient = command("out", "--patience", "2", "--max_steps", "6", "--num_epochs", "9")
    patient += ["--answers", "0"]
    assert script.main(patient) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["step"], record["planned_steps"], record["best"]) == (4, 6, 2.0)
    assert len(saved) == 2


def test_diverged_training_is_an_error(tiny, command, monkeypatch, capsys):
    monkeypatch.setattr(script, "fit", lambda *_: ([float("nan")], None))
    assert script.main(command("out", "--val_set_size", "0")) == 2
    assert "not finite any more by step 1" in capsys.readouterr().err


def test_loras_checkpoint_holds_all_that_is_trained(tiny, command, tmp_path):
    options = script.parse_arguments(
        command("out", "--use_lora", "--quantize", "int8", "--randlora_dropout", "0")
    )
    options.output_dir.mkdir()
    model = bigrams()
    script.quantize(model, "int8")
    assert script.adapt(model, options) == 2 * 4 * (12 + 8)
    script.compile_for(model, 4, options)
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    variables = [*model.trainable_variables, *model.optimizer.variables]
    values = [rng.integers(0, 9, variable.shape) for variable in variables]
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value.astype(str(variable.dtype)))
    script.save_checkpoint(model, script.Progress(step=2), {}, options)
    for variable in variables:
        variable.assign(np.zeros(variable.shape, str(variable.dtype)))
    folder = script.find_checkpoint(parse("--resume", "--output_dir", tmp_path / "out"))
    assert script.restore(folder, model, options).step == 2
    for variable, value in zip(variables, values, strict=True):
        np.testing.assert_array_equal(as_numpy(variable), value)


# Options.


def test_options_known_from_peft():
    options = parse("--quantize", "--very_sparse", "--randlora_target_modules", "a,b")
    assert (options.quantize, options.basis) == ("int4", "very_sparse")
    assert parse("--sparse").basis == "sparse" and parse().basis is None


@pytest.mark.any_backend
@pytest.mark.parametrize(
    "options, message",
    [
        (["--sparse", "--very_sparse"], "--very_sparse: not allowed with argument"),
        (["--basis", "normal", "--sparse"], "--sparse: not allowed with argument"),
        (["--warmup_ratio", "1"], "at least 0 and below 1. Received: 1"),
        (["--weight_decay", "-1"], "must not be negative. Received: -1"),
        (["--answers", "-1"], "must not be negative. Received: -1"),
        (["--template", "vicuna"], "invalid choice: 'vicuna'"),
        (["--gradient_accumulation_steps", "3"], "Received: 2 and 3"),
        (["--val_set_size", "1.5"], "a count, a fraction below 1, or 0. Received: 1.5"),
        (["--val_set_size", "0", "--patience", "2"], "--patience needs validation"),
        (["--use_lora", "--very_sparse"], "--basis belongs to RandLoRA"),
        (["--quantize", "int2"], "invalid choice: 'int2'"),
        (["--rank", "0"], "must be positive. Received: 0"),
        (["--resume"], "--resume: there is no checkpoint in "),
        (["--device", "gpu"], f"--device gpu: {BACKEND} sees no GPU"),
        (["--data_path", "/nowhere"], "Cannot read the text file /nowhere"),
        (["--randlora_target_modules", "quary"], "'quary'"),
        (["--randlora_dropout", "1.5"], "dropout"),
        (["--basis", "gaussian"], "'gaussian'"),
    ],
)
def test_a_wrong_option_is_one_line(
    plain, command, tmp_path, capsys, monkeypatch, options, message
):
    monkeypatch.setattr(script, "load", lambda *_, **__: plain)
    monkeypatch.setattr(finetuning_options, "has_gpu", lambda backend: False)
    try:
        status = script.main(command("out", *options))
    except SystemExit as stopped:
        status = stopped.code
    errors = capsys.readouterr().err
    assert status == 2 and message in errors and errors.count("\n") == 1


@pytest.mark.any_backend
def test_it_runs_as_a_file():
    command = [sys.executable, script.__file__, "--rank", "x"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path.home())
    assert found.returncode == 2
    assert found.stderr == (
        "randlora_finetuning.py: error: argument --rank: invalid int value: 'x'\n"
    )


def test_cpu_hides_the_gpus(tiny, command, monkeypatch):
    for name in script.CPU_ONLY:
        monkeypatch.setenv(name, "untouched")  # and restored
    monkeypatch.setattr(script, "run", lambda options: None)
    assert script.main(command("out", "--device", "cpu")) == 0
    assert {name: os.environ[name] for name in script.CPU_ONLY} == script.CPU_ONLY


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_named(command, logger, monkeypatch, capsys):
    monkeypatch.setattr(
        finetuning_options.importlib.util,
        "find_spec",
        lambda name: None if name == logger else 1,
    )
    assert script.main(command("out", f"--{logger}", "somewhere")) == 2
    assert f"pip install {logger}\n" in capsys.readouterr().err


def test_tensorboard_gets_the_losses_of_each_evaluation(tiny, command, tmp_path):
    pytest.importorskip("tensorflow")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    logs = tmp_path / "logs"
    options = ("--max_steps", "2", "--tensorboard", str(logs))
    assert script.main(command("out", *options)) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    written = {"train": record["training"]}
    written["validation"] = [loss for step, loss in record["validation"] if step]
    for name, losses in written.items():
        events = EventAccumulator(str(logs / name)).Reload().Tensors("epoch_loss")
        assert [event.step for event in events] == [0, 1]
        values = [make_ndarray(event.tensor_proto) for event in events]
        np.testing.assert_allclose(values, losses, rtol=1e-5)


def test_wandb_gets_the_options(monkeypatch):
    started = {}
    logger = keras.callbacks.Callback
    modules = {
        "wandb": types.SimpleNamespace(init=lambda **what: started.update(what)),
        "wandb.integration": types.SimpleNamespace(),
        "wandb.integration.keras": types.SimpleNamespace(WandbMetricsLogger=logger),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    (callback,) = script.loggers(parse("--wandb", "--rank", 7))
    assert isinstance(callback, keras.callbacks.Callback)
    assert started["project"] == "keras-randlora" and started["config"]["rank"] == 7
