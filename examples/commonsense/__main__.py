"""Compare RandLoRA with LoRA and full fine-tuning on commonsense reasoning.

`train` appends a record for each run to a file and skips the runs that it holds.
`tables` prints the file as Markdown tables.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line import (
    BACKENDS,
    DefaultsHelp,
    OneLineParser,
    UserError,
    exit_status,
    positive,
    shard,
    user_choices,
)
from pretrained import LANGUAGE_MODELS

from examples.commonsense.questions import test_questions, training_questions

OUT = Path("runs/commonsense.jsonl")
PUBLISHED = Path(__file__).with_name("runs.jsonl")
METHODS = ["none", "full", "lora-8", "lora-16", "lora-32", "randlora-as-lora-8"]
METHODS += ["randlora-as-lora-16", "randlora-as-lora-32", "vera-256"]
# Default learning rates, by method or by the beginning of its name. Of 1e-4, 3e-4 and
# 1e-3 the best for LoRA and RandLoRA on SmolLM2 (docs/results.md); others not tuned.
LEARNING_RATES = {
    "full": 2e-5,
    "lora": 3e-4,
    "matrixlora": 3e-4,
    "dora": 3e-4,
    "randlora": 1e-4,
    "vera": 1e-3,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, or 2 where an option is wrong."""
    options = parse_arguments(arguments)
    return exit_status("commonsense", lambda: options.command(options))


def train(options: argparse.Namespace) -> None:
    """Run this shard."""
    os.environ["KERAS_BACKEND"] = options.backend  # read when Keras is imported
    jobs = list(planned(options))
    with user_choices():
        training = training_questions(options.data, options.train_examples)
        test = test_questions(options.data, options.test_examples)

    from examples import runs
    from examples.commonsense import study

    for number, what in enumerate(jobs, 1):
        print(f"{number} of {len(jobs)}: {what['method']}, seed {what['seed']}")
        record = runs.run_once(
            options.out,
            lambda what=what: study.run(
                what["method"],
                what["seed"],
                what["learning_rate"],
                training,
                test,
                options,
            ),
            **what,
        )
        print(f"  mean {record['mean/likelihood']:.3f} in {record['seconds']:.0f} s")


def planned(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the identity of each run of this shard."""
    shared = ("preset", "backend", "batch_size", "cutoff", "train_examples")
    shared += ("test_examples", "generate_examples")
    found = []
    for seed in range(options.seeds):
        for method in options.methods:
            trains = method != "none"
            if trains or seed == 0:  # nothing of it is random
                rate = learning_rate(method, options.learning_rate) if trains else None
                found.append(
                    {
                        "method": method,
                        "seed": seed,
                        "steps": options.steps if trains else 0,
                        "learning_rate": rate,
                        "targets": " ".join(options.targets),
                        **{name: getattr(options, name) for name in shared},
                    }
                )
    part, parts = options.shard
    return found[part - 1 :: parts]


def learning_rate(method: str, given: dict[str, float]) -> float:
    """Return the learning rate of a method, by its name or the beginning of it."""
    rates = {**LEARNING_RATES, **given}
    names = [name for name in rates if method == name or method.startswith(f"{name}-")]
    if not names:
        raise UserError(
            f"No learning rate for the method {method!r}: pass --learning-rate "
            f"{method}=RATE."
        )
    return rates[max(names, key=len)]


def show_tables(options: argparse.Namespace) -> None:
    """Print the tables of the records."""
    from examples import runs
    from examples.commonsense.tables import tables

    with user_choices():
        records = runs.to_show(options.out, PUBLISHED)
    print(tables(records))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = OneLineParser(
        prog="python -m examples.commonsense", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(metavar="train|tables", required=True)
    command = commands.add_parser(
        "train",
        help="run what the file does not hold yet",
        formatter_class=DefaultsHelp,
    )
    command.set_defaults(command=train)
    add = command.add_argument
    names = ", ".join(LANGUAGE_MODELS)
    add("--preset", default="smollm2", help=f"{names}, or a preset of keras-hub")
    add("--data", type=Path, required=True, help="folder with commonsense/*.json")
    add("--backend", choices=BACKENDS, default="jax", help="what Keras runs on")
    add(
        "--methods",
        nargs="+",
        default=METHODS,
        help="none, or names of methods.py and reference_layers.py",
    )
    add("--seeds", type=positive(int), default=3, help="runs of each method")
    add("--steps", type=positive(int), default=48, help="optimizer steps")
    add("--batch-size", type=positive(int), default=4, help="questions per step")
    add("--cutoff", type=positive(int), default=160, help="tokens per question")
    add(
        "--train-examples",
        type=count,
        default=192,
        help="divided equally among the training files; 0: all",
    )
    add("--test-examples", type=count, default=40, help="per task; 0: all")
    add("--generate-examples", type=count, default=8, help="of these; 0: none")
    add(
        "--learning-rate",
        nargs="+",
        type=method_and_rate,
        default=[],
        metavar="METHOD=RATE",
        help="of a method, or of all methods whose name begins like this; default: "
        + ", ".join(f"{name}={rate:g}" for name, rate in LEARNING_RATES.items()),
    )
    add(
        "--targets",
        nargs="+",
        default=["all-linear"],
        help="layers to adapt; paper: query, key, value, up and down",
    )
    add("--shard", type=shard, default="1/1", metavar="I/N", help="part I of N")
    for each in (command, commands.add_parser("tables", help="print the tables")):
        each.add_argument("--out", type=Path, default=OUT, help="file of the records")
    each.set_defaults(command=show_tables)
    options = parser.parse_args(arguments)
    if options.command is train:
        options.learning_rate = dict(options.learning_rate)
    return options


def count(text: str) -> int:
    """Return a non-negative integer."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative. Received: {text}")
    return value


def method_and_rate(text: str) -> tuple[str, float]:
    """Return the parts of `METHOD=RATE`."""
    method, _, rate = text.partition("=")
    try:
        return method, positive(float)(rate)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(
            f"must be METHOD=RATE, as in lora-16=1e-3. Received: {text}"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
