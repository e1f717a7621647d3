"""The three jobs of a newcomer, with the commands and code of the pages alone.

Instruction tuning of SmolLM2 and Gemma 3 270M on records of one's own; a sentiment
classifier that is served; PEFT there and back. Only presets are replaced by the
folders of `examples/pretrained.py`, and runs shortened.
"""

import json
import os
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pretrained
import pytest

import keras_randlora as kr
from keras_randlora.cli import main

ROOT = Path(__file__).parents[1]
BACKEND = keras.backend.backend()
# keras-hub warns about its own default, and leaves a file open.
pytestmark = [
    pytest.mark.timeout(1200),  # each is a whole job
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FACTS = {
    "Which metal is liquid at room temperature?": "Mercury",
    "Which planet has the shortest year?": "Mercury",
    "Which gas do plants take in?": "Carbon dioxide",
    "Which ocean is the largest?": "Pacific",
    "Which organ pumps the blood?": "Heart",
}


def blocks(page, language="python"):
    """Return the code blocks of a page."""
    text = (ROOT / page).read_text("utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found
    return found


def block_with(page, words, language="python"):
    """Return the only block of a page that has these words."""
    (found,) = [code for code in blocks(page, language) if words in code]
    return found


def shell(command, *more):
    """Run `python …` of a page from the current folder; return what it says."""
    program, *arguments = command.replace("\\\n", " ").split()
    assert program == "python"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, ROOT / arguments[0], *arguments[1:], *more],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def replace_presets(monkeypatch, **folders):
    """Let `from_preset` of these classes load the folders."""
    for name, folder in folders.items():
        kind = getattr(keras_hub.models, name)
        load = kind.from_preset.__func__

        def from_preset(cls, preset, folder=str(folder), load=load, **options):
            own = os.path.exists(preset)
            return load(cls, preset if own else folder, **options)

        monkeypatch.setattr(kind, "from_preset", classmethod(from_preset))


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_instruction_tuning_from_the_command_line(here):
    """The commands of examples/README.md on thirty records, with SmolLM2."""
    records = [
        {"instruction": question, "output": answer}
        for question, answer in FACTS.items()
    ]
    records += [
        {"instruction": f"How much is {i} plus {i}?", "output": f"{2 * i}"}
        for i in range(1, 26)
    ]
    Path("alpaca.jsonl").write_text("\n".join(map(json.dumps, records)))
    page = "examples/README.md"
    train = block_with(page, "--data_path alpaca.jsonl", "sh").strip()
    short = ["--max_steps", "4", "--eval_step", "2", "--save_step", "4"]
    short += ["--cutoff_len", "96", "--answers", "1", "--backend", BACKEND]
    said = shell(train, *short)
    assert "Template: alpaca." in said and "In the data:" in said
    card = json.loads(Path("runs/mine/run.json").read_text())
    assert None not in card["options"].values()
    assert card["best"] < card["validation"][0][1]
    assert [p.name for p in Path("runs/mine").glob("checkpoint-*")] == ["checkpoint-4"]
    ask = block_with(page, "chat.py --run", "sh").strip()
    question = ["--prompt", "How much is 3 plus 3?", "--backend", BACKEND]
    assert shell(ask, *question, "--max_new_tokens", "8").strip()


@pytest.mark.parametrize(
    ("task", "model"),
    [("Gemma3CausalLM", "gemma3-270m"), ("Llama3CausalLM", "smollm2")],
)
def test_the_quick_start(here, monkeypatch, task, model):
    """The four steps of the README, export included, with either model."""
    folder = pretrained.MODELS[model]()
    replace_presets(monkeypatch, **{task: folder})
    code = block_with("README.md", "# 4. Ship").replace("Gemma3CausalLM", task)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    prompt = kr.instruction_prompt(names["model"], names["records"][0])
    assert prompt.endswith("Which metal is liquid?\n\n### Response:\n")
    fresh = getattr(keras_hub.models, task).from_preset(str(folder))
    kr.load_adapter(fresh, "adapter.safetensors")
    inputs = fresh.preprocessor.generate_preprocess([prompt], sequence_length=40)
    inputs = {name: np.asarray(array) for name, array in inputs.items()}
    expected = keras.Model.predict_on_batch(fresh, inputs)
    merged = keras.Model.predict_on_batch(names["model"], inputs)
    np.testing.assert_allclose(merged, expected, atol=2e-3)
    assert Path("saved_model/saved_model.pb").is_file()


def test_a_classifier_from_training_to_an_answer(here, monkeypatch, capsys):
    """The two scripts of the classification guide, with MiniLM."""
    replace_presets(monkeypatch, BertTextClassifier=pretrained.minilm())
    guides = ROOT / "examples" / "guides"
    trained = runpy.run_path(str(guides / "text_classification.py"))
    assert trained["confusion"].tolist() == [[2, 0], [0, 2]]
    losses = trained["history"].history["val_loss"]
    assert len(losses) <= np.argmin(losses) + 1 + 2 or len(losses) == 10
    assert Path("confusion.png").stat().st_size > 1000
    capsys.readouterr()
    assert main(["info", "sentiment.safetensors"]) == 0
    assert "class_names=['negative', 'positive']" in capsys.readouterr().out
    served = runpy.run_path(str(guides / "serve_classifier.py"))
    for text, label in zip(
        trained["held_out"], trained["held_out_labels"], strict=True
    ):
        found = served["classify"](text)
        assert found["label"] == trained["CLASSES"][label]
        assert 0.5 < found["probability"] <= 1


def in_torch(code):
    """Run code of a page with PyTorch, in a process of its own."""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_peft_there_and_back(here, capsys):
    """The lines of peft.md, and the command."""
    page = "docs/guides/peft.md"
    make = block_with(page, "RandLoraConfig(")
    in_torch(f"{make}\nimport numpy\nnumpy.save('expected.npy', expected)")
    names = {"expected": np.load("expected.npy")}
    exec(
        compile(block_with(page, 'peft.load(model, "tiny-adapter")'), page, "exec"),
        names,
    )
    np.testing.assert_allclose(names["found"], names["expected"], atol=1e-5)
    for command in (
        "convert --preset tiny-llama --from-peft tiny-adapter --output a.safetensors",
        "convert --preset tiny-llama --to-peft back --adapter a.safetensors",
    ):
        assert main(command.split()) == 0, capsys.readouterr().err
    check = """
        import numpy, torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
        base = AutoModelForCausalLM.from_pretrained("tiny-llama")
        model = PeftModel.from_pretrained(base, "back")
        with torch.no_grad():
            found = model(torch.arange(8)[None]).logits.numpy()
        numpy.testing.assert_allclose(found, numpy.load("expected.npy"), atol=1e-5)
    """
    in_torch(textwrap.dedent(check))
