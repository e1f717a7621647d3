"""Fine-tune a language model with RandLoRA: load, enable, fit, save, merge, export.

`run` reads like the quick start of the library; the rest of the file supports it.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import curves
import numpy as np
from command_line import (
    BACKENDS,
    DefaultsHelp,
    OneLineParser,
    exit_status,
    positive,
    user_choices,
)
from pretrained import LANGUAGE_MODELS, resolve, restore_word_split
from text_data import Windows, load_documents, pack, split, unit_mean

from benchmarks.machine import version_of
from keras_randlora_command import quiet, start_tensorflow

HELD_OUT_FRACTION = 0.2
HELD_OUT_WINDOWS = 16
NEW_TOKENS = 40
LOGIT_TOLERANCE = 1e-3


class Observation(NamedTuple):
    """Quality of a model: cross-entropy in nats per token, and a generated text."""

    loss: float
    sample: str

    @property
    def perplexity(self) -> float:
        """The perplexity, the exponential of the loss."""
        return math.exp(self.loss)


class Text(NamedTuple):
    """The text of a run: training windows, held-out windows, the prompt of a sample."""

    training: Windows
    held_out: Windows
    prompt: str


def main() -> int:
    """Run the demo; return 0, 1 if a check fails, 2 if the options are wrong."""
    arguments = parse_arguments()
    os.environ["KERAS_BACKEND"] = arguments.backend  # read when Keras is imported
    return exit_status("demo.py", lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Fine-tune, save, merge and export as `arguments` say; return the exit status."""
    with quiet():
        import keras_randlora as kr
    start_tensorflow()  # which keras-hub imports

    seconds: dict[str, float] = {}
    output = new_folder(arguments.output)

    # 1. Load.
    with timed(seconds, "load"):
        model, preprocessor = load(arguments.preset)
        text = prepare_text(arguments, preprocessor.tokenizer)
    with timed(seconds, "observe before"):
        before = observe(model, preprocessor, text)
    show("before", before)

    # 2. Enable.
    with user_choices():
        report = kr.enable_randlora(
            model,
            arguments.rank,
            arguments.targets,
            alpha=arguments.alpha,
            basis=arguments.basis,
            seed=arguments.seed,
        )
    print(f"\n{report}\n")

    # 3. Fit.
    with timed(seconds, "fit"):
        losses = fit(model, text.training, arguments)
    with timed(seconds, "observe after"):
        after = observe(model, preprocessor, text)
    show("after", after)

    # 4. Save, export, merge.
    probe = first_rows(text.held_out.inputs, 2)
    logits = model.predict_on_batch(probe)
    differences = {}
    with timed(seconds, "save and load"):
        kr.save_adapter(model, output / "adapter.safetensors")
        fresh, _ = load(arguments.preset)
        kr.load_adapter(fresh, output / "adapter.safetensors")
        differences["loaded adapter"] = distance(fresh.predict_on_batch(probe), logits)
        del fresh
    with timed(seconds, "export"):
        kr.export_merged(
            model, output / "saved_model", format="tf_saved_model", overwrite=True
        )
    with timed(seconds, "merge"):
        kr.merge_randlora(model)
        differences["merged model"] = distance(model.predict_on_batch(probe), logits)
    with timed(seconds, "reload export"):
        exported = run_saved_model(output / "saved_model", probe)
        differences["SavedModel in TensorFlow"] = distance(exported, logits)

    record = describe(arguments, report, before, after, losses, differences, seconds)
    (output / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    show_files(output, differences)
    plot(output / "loss.png", losses, before, after, arguments)
    return verdict(before, after, differences)


# Arguments.


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = OneLineParser(
        description=__doc__.splitlines()[0],
        formatter_class=DefaultsHelp,
    )
    add = parser.add_argument
    add("--backend", choices=BACKENDS, default="jax", help="what Keras runs on")
    add(
        "--preset",
        default="smollm2",
        help=f"{', '.join(LANGUAGE_MODELS)}; or a preset of keras-hub, hf://…, folder",
    )
    add(
        "--data",
        type=Path,
        help="plain text, or Alpaca records as .jsonl or .json "
        "(default: Python's own help topics)",
    )
    add("--rank", type=int, default=32, help="rank of each basis")
    add("--alpha", type=float, help="scale of the update (default: 20 · rank)")
    add(
        "--targets",
        nargs="+",
        help="layers to adapt: names, globs, attention, mlp, all-linear "
        "(default: the model's own choice)",
    )
    add("--basis", default="uniform", help="distribution of the random bases")
    add("--seed", type=int, default=0, help="seed of the bases and the data order")
    add("--steps", type=positive(int), default=30, help="optimizer steps")
    add("--learning-rate", type=positive(float), default=1e-3, help="highest rate")
    add("--batch-size", type=positive(int), default=2, help="windows in a step")
    add("--sequence-length", type=positive(int), default=128, help="window's tokens")
    add("--output", type=Path, default=Path("demo-output"), help="folder to write to")
    return parser.parse_args()


def new_folder(path: Path) -> Path:
    """Create the folder that results are written to."""
    with user_choices():
        path.mkdir(parents=True, exist_ok=True)
    return path


# Model and text.


def load(preset: str, dtype: str | None = None) -> tuple[Any, Any]:
    """Return a keras-hub causal language model and its preprocessor, separately.

    The model takes token ids, as an exported one does; the preprocessor makes them.
    Without a `dtype` the preset's own counts.
    """
    import keras_hub

    with user_choices():
        source = resolve(preset)
        preprocessor = keras_hub.models.CausalLMPreprocessor.from_preset(source)
        options = {"dtype": dtype} if dtype else {}
        model = keras_hub.models.CausalLM.from_preset(
            source, preprocessor=None, **options
        )
    model.compile(optimizer=None, weighted_metrics=[], sampler="greedy")
    restore_word_split(preprocessor.tokenizer, source)
    return model, preprocessor


def prepare_text(arguments: argparse.Namespace, tokenizer: Any) -> Text:
    """Read the text, set a part aside, and cut both parts into windows."""
    with user_choices():
        training, held_out = split(load_documents(arguments.data), HELD_OUT_FRACTION)
        length = arguments.sequence_length
        return Text(
            training=pack(training, tokenizer, length),
            held_out=pack(held_out, tokenizer, length).spread(HELD_OUT_WINDOWS),
            prompt=held_out[0].prompt or opening(held_out[0].text),
        )


def opening(text: str, length: int = 100) -> str:
    """Return the first words of a text, `length` characters at most."""
    return text if len(text) <= length else text[:length].rpartition(" ")[0]


def first_rows(inputs: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Return the first examples of a batch of named arrays."""
    return {name: array[:count] for name, array in inputs.items()}


# Training and evaluation.


def fit(model: Any, windows: Windows, arguments: argparse.Namespace) -> list[float]:
    """Train the model's adapters; return the loss of each step, in nats per token."""
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=arguments.learning_rate,
        warmup_steps=max(1, arguments.steps // 10),
        decay_steps=arguments.steps,
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
        sampler="greedy",
    )
    means: list[float] = []
    recorder = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda step, logs: means.append(float(logs["loss"]))
    )
    windows = shuffled(windows, arguments.steps * arguments.batch_size, arguments.seed)
    model.fit(
        windows.inputs,
        windows.targets,
        sample_weight=unit_mean(windows.weights),
        batch_size=arguments.batch_size,
        shuffle=False,
        callbacks=[recorder],
    )
    return curves.step_losses(means)


def shuffled(windows: Windows, count: int, seed: int) -> Windows:
    """Return `count` windows in random order; each is used before one comes again."""
    generator = np.random.default_rng(seed)
    total = len(windows.token_ids)
    rounds = [generator.permutation(total) for _ in range(math.ceil(count / total))]
    order = np.concatenate(rounds)[:count]
    return Windows(*(array[order] for array in windows))


def observe(model: Any, preprocessor: Any, text: Text) -> Observation:
    """Measure a compiled model on the held-out text and let it continue the prompt."""
    results = model.evaluate(
        text.held_out.inputs,
        text.held_out.targets,
        sample_weight=unit_mean(text.held_out.weights),
        batch_size=4,
        verbose=0,
        return_dict=True,
    )
    return Observation(results["loss"], generate(model, preprocessor, text.prompt))


def generate(model: Any, preprocessor: Any, prompt: str) -> str:
    """Return the prompt with the model's continuation."""
    tokenizer = preprocessor.tokenizer
    length = 1 + len(tokenizer.tokenize(prompt)) + NEW_TOKENS
    # Attached for this call: Gemma 3 of keras-hub 0.32 does not generate without.
    model.preprocessor = preprocessor
    try:
        return model.generate([prompt], max_length=length)[0]
    finally:
        model.preprocessor = None


# The exported model.


def run_saved_model(saved_model: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the logits that a process with only TensorFlow gets."""
    script = Path(__file__).with_name("run_saved_model.py")
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        np.savez(given, **inputs)
        command = [sys.executable, script, saved_model, given, answer]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        with np.load(answer) as outputs:
            return outputs["logits"]


def distance(found: Any, expected: Any) -> float:
    """Return the largest difference between two arrays."""
    return float(np.max(np.abs(np.asarray(found) - np.asarray(expected))))


# Results.


@contextlib.contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Record the time of a phase."""
    start = time.perf_counter()
    yield
    seconds[phase] = round(time.perf_counter() - start, 2)


def show(when: str, observation: Observation) -> None:
    """Print an observation."""
    print(f"\nHeld-out perplexity {when}: {observation.perplexity:.2f}")
    print(f"Sample {when}:")
    print("\n".join(f"  | {line}" for line in observation.sample.splitlines()))


def show_files(output: Path, differences: dict[str, float]) -> None:
    """Print the written files and their differences from the trained model."""
    adapter = output / "adapter.safetensors"
    print(f"\nAdapter: {adapter} ({adapter.stat().st_size / 1e6:.2f} MB)")
    print(f"Merged model: {output / 'saved_model'} (TensorFlow SavedModel)")
    print("Largest logit difference from the trained model:")
    for name, difference in differences.items():
        print(f"  {name:<26} {difference:.2e}")
    print(f"All results: {output / 'run.json'}")


def verdict(
    before: Observation, after: Observation, differences: dict[str, float]
) -> int:
    """Return 0 if all checks passed, else print which failed and return 1."""
    problems = [
        f"{name}: logits differ by {difference:.2e}, more than {LOGIT_TOLERANCE:g}."
        for name, difference in differences.items()
        if not difference < LOGIT_TOLERANCE
    ]
    if not after.loss < before.loss:
        problems.append(
            f"Held-out perplexity did not fall: {before.perplexity:.2f} before, "
            f"{after.perplexity:.2f} after. Try a lower --learning-rate, more --steps "
            "or more text."
        )
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    if not problems:
        print(
            f"\nHeld-out perplexity: {before.perplexity:.2f} → {after.perplexity:.2f}"
        )
    return 1 if problems else 0


def describe(
    arguments: argparse.Namespace,
    report: Any,
    before: Observation,
    after: Observation,
    losses: Sequence[float],
    differences: dict[str, float],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Return the record of the run, for JSON."""
    packages = ("keras", "keras-hub", "numpy", "jax", "torch", "tensorflow")
    return {
        "arguments": {name: as_json(v) for name, v in vars(arguments).items()},
        "versions": {
            "python": platform.python_version(),
            **{name: version_of(name) for name in packages},
        },
        "machine": {
            "platform": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
        },
        "parameters": {
            "adapted_layers": len(report.layers),
            "trainable": report.trainable,
            "total": report.total,
        },
        "held_out": {
            "before": {"perplexity": before.perplexity, **before._asdict()},
            "after": {"perplexity": after.perplexity, **after._asdict()},
        },
        "step_losses": losses,
        "largest_logit_differences": differences,
        "seconds": seconds,
    }


def as_json(value: Any) -> Any:
    """Return a path as text, any other option as it is."""
    return str(value) if isinstance(value, Path) else value


def plot(
    path: Path,
    losses: Sequence[float],
    before: Observation,
    after: Observation,
    arguments: argparse.Namespace,
) -> None:
    """Plot the training loss, with the held-out loss before and after."""
    if importlib.util.find_spec("matplotlib") is None:
        print("Loss curve: not drawn, since matplotlib is not installed")
        return
    method = f"RandLoRA rank {arguments.rank}"
    curves.draw(
        path,
        losses,
        [(0, before.loss), (len(losses), after.loss)],
        label=f"held out, perplexity {before.perplexity:.1f} → {after.perplexity:.1f}",
        token="token",
        title=f"{arguments.preset}, {method}, {arguments.backend}",
    )
    print(f"Loss curve: {path}")


if __name__ == "__main__":
    sys.exit(main())
