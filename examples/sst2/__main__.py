"""Text classification: MiniLM on SST-2, RandLoRA beside full fine-tuning and LoRA.

Run `learning-rates` first, then `methods`, `table3`, `table4` and `few-shot`, which use
the learning rates it found. Each run is a line of the file `--out`; runs in the file
are not repeated. `tables` prints the file; `figures` trains three models and plots
them. The defaults suit a CPU: most runs take a minute or two on one core.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from examples import runs
from examples.command_line import (
    BACKENDS,
    DefaultsHelp,
    OneLineParser,
    exit_status,
    positive,
    shard,
    user_choices,
)
from examples.sst2.experiments import (
    BUDGETS,
    EXPERIMENTS,
    RATES,
    Options,
    planned,
    rate_of,
)

OUT = Path("runs/sst2.jsonl")
PUBLISHED = Path(__file__).with_name("runs.jsonl")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = OneLineParser(
        prog="python -m examples.sst2",
        description=__doc__,
        formatter_class=DefaultsHelp,
    )
    add = parser.add_argument
    add("experiment", choices=[*EXPERIMENTS, "tables", "figures"])
    add("--data", type=Path, help="folder that holds sst2/train.tsv and sst2/dev.tsv")
    add("--backend", choices=BACKENDS, default="jax", help="what Keras runs on")
    add("--out", type=Path, default=OUT, help="file of the records")
    add(
        "--seeds",
        type=positive(int),
        default=3,
        help="runs of each method, not of learning-rates",
    )
    add(
        "--steps",
        type=positive(int),
        default=100,
        help="optimizer steps of a run; in few-shot one epoch of 50 %% and 100 %%",
    )
    add("--batch-size", type=positive(int), default=16, help="sentences per step")
    add(
        "--sequence-length",
        type=positive(int),
        default=48,
        help="tokens of a sentence; 98 %% of the sentences fit",
    )
    add("--methods", nargs="+", help="methods, instead of the experiment's own")
    add("--rates", nargs="+", type=float, default=RATES, help="learning rates to try")
    add(
        "--budgets",
        nargs="+",
        choices=BUDGETS,
        default=BUDGETS,
        help="of few-shot: sentences per class, or a share of all",
    )
    add("--learning-rate", type=float, help="for all runs, instead of the chosen ones")
    add("--shard", type=shard, default="1/1", metavar="I/N", help="part I of N")
    figures = parser.add_argument_group("figures")
    add = figures.add_argument
    add("--folder", type=Path, default=Path("docs/figures"), help="of the plots")
    add("--html", type=Path, help="also the loss plane as a page, about 5 MB")
    add("--lora", default="matrixlora-16", help="the LoRA of the figures")
    add("--randlora", default="randlora-as-lora-16:2", help="the RandLoRA")
    add("--sentences", type=positive(int), default=128, help="of CKA and of the losses")
    add("--resolution", type=positive(int), default=11, help="points of the loss plane")
    options = parser.parse_args(arguments)
    if options.experiment != "tables" and options.data is None:
        parser.error(f"`--data` is needed for {options.experiment}.")
    if options.experiment == "learning-rates" and options.learning_rate is not None:
        parser.error("learning-rates tries `--rates`; `--learning-rate` is for others.")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an experiment, or show what was found; return the exit status."""
    given = parse_arguments(arguments)
    os.environ["KERAS_BACKEND"] = given.backend  # read when Keras is imported
    actions = {"tables": show_tables, "figures": draw_figures}
    action = actions.get(given.experiment, run_all)
    return exit_status("python -m examples.sst2", lambda: action(given))


def options_of(given: argparse.Namespace) -> Options:
    """Return what all runs have in common."""
    return Options(
        seeds=given.seeds,
        steps=given.steps,
        batch_size=given.batch_size,
        sequence_length=given.sequence_length,
        backend=given.backend,
        rates=tuple(given.rates),
        learning_rate=given.learning_rate,
        methods=tuple(given.methods) if given.methods else None,
        budgets=tuple(given.budgets),
    )


def run_all(given: argparse.Namespace) -> None:
    """Run what the file does not hold yet."""
    plans = planned(given.experiment, options_of(given), runs.read(given.out))
    part, parts = given.shard
    plans = plans[part - 1 :: parts]
    from examples.sst2 import train

    for number, plan in enumerate(plans, 1):
        what = vars(plan)
        record = runs.run_once(
            given.out, lambda p=plan: train.run(p, given.data), **what
        )
        judged = {k: v for k, v in record.items() if k.endswith(("accuracy", "loss"))}
        found = ", ".join(f"{name} {value:.3f}" for name, value in judged.items())
        print(
            f"{number}/{len(plans)} {plan.method}, budget {plan.budget}, seed "
            f"{plan.seed}, learning rate {plan.learning_rate:g}: {found}; "
            f"{record['seconds']:.0f} s",
            flush=True,
        )


def show_tables(given: argparse.Namespace) -> None:
    """Print the tables of all records."""
    from examples.sst2.tables import tables

    with user_choices():
        records = runs.to_show(given.out, PUBLISHED)
    print(tables(records))


def draw_figures(given: argparse.Namespace) -> None:
    """Train three methods from one start, plot them, print the figures."""
    options, records = options_of(given), runs.read(given.out)
    rates = {
        method: rate_of(method, options, records)
        for method in ("full", given.lora, given.randlora)
    }
    import numpy as np

    from examples.sst2 import data, figures

    corpus = data.load(given.data, given.sequence_length)
    trained = figures.train_all(
        rates, corpus, steps=given.steps, batch_size=given.batch_size
    )
    given.folder.mkdir(parents=True, exist_ok=True)
    rows = np.arange(given.sentences)
    print(figures.spectra(trained, given.folder / "sst2_spectra.png"), end="\n\n")
    cka = given.folder / "sst2_cka.png"
    print(figures.likeness(trained, corpus.dev.take(rows), cka), end="\n\n")
    plots = [given.folder / "sst2_loss_plane.png", given.html]
    print(
        figures.plane(
            trained,
            corpus.train.take(rows),
            [path for path in plots if path],
            resolution=given.resolution,
            batch_size=min(32, given.sentences),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
