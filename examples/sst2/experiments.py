"""Runs of each experiment, and their learning rates.

| experiment | what differs | measured on |
|---|---|---|
| `learning-rates` | learning rate of each method, one grid, seed 0 | a tenth of train |
| `methods` | full fine-tuning, LoRA, RandLoRA and others | dev |
| `table3` | rank of the update at an equal parameter count (paper, table 3) | dev |
| `table4` | distribution of the bases (paper, table 4) | dev |
| `few-shot` | number of training examples | dev |
"""

import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from examples import runs
from examples.command_line import UserError

RATES = (1e-4, 5e-4, 2e-3, 1e-2)
EVERYTHING = "100%"
BUDGETS = ("1", "2", "4", "16", "50%", EVERYTHING)
TRAIN_SIZE = 6920  # sentences of sst2/train.tsv

# `:2` is alpha twice the rank, as the authors advise for such tasks (GLUE).
METHODS = (
    "full",
    "head",
    "lora-4",
    "matrixlora-4",
    "randlora-as-lora-4:2",
    "randlora-as-lora-4-kronecker:2",
    "lora-16",
    "matrixlora-16",
    "randlora-as-lora-16:2",
    "randlora-as-lora-16-kronecker:2",
    "dora-16",
    "vera-128:2",
    "nola-8",
)
FEW_SHOT_METHODS = (
    "full",
    "lora-16",
    "matrixlora-16",
    "randlora-as-lora-16:2",
    "vera-128:2",
    "dora-16",
)
# Zeros in 66, 93, 98 and 99 % of the entries.
BASES = ("normal", "binary", "ternary6", "ternary28", "ternary100", "ternary200")
BASES += ("kronecker",)
# Every kernel of MiniLM has a smaller side of 384. RandLoRA of rank 8, with 48 bases,
# has about as many parameters as LoRA of rank 16.
SMALLER_SIDE, TABLE3_RANK = 384, 8


@dataclass(frozen=True)
class Options:
    """Options of all runs of a call.

    Attributes:
        seeds: Number of seeds: 0, 1, ….
        steps: Optimizer steps of a run; few-shot runs take at least one epoch.
        batch_size: Sentences per step.
        sequence_length: Tokens of a sentence; longer ones are cut.
        backend: The backend of Keras.
        rates: The grid of `learning-rates`.
        learning_rate: For all runs, instead of the chosen ones.
        methods: Methods, instead of the experiment's own.
        budgets: For `few-shot`: sentences per class, or a share of train.
    """

    seeds: int
    steps: int
    batch_size: int
    sequence_length: int
    backend: str
    rates: tuple[float, ...] = RATES
    learning_rate: float | None = None
    methods: tuple[str, ...] | None = None
    budgets: tuple[str, ...] = BUDGETS


@dataclass(frozen=True)
class Run:
    """One training run: its fields identify its record."""

    experiment: str
    method: str
    seed: int
    learning_rate: float
    budget: str
    steps: int
    batch_size: int
    sequence_length: int
    backend: str


def planned(
    experiment: str, options: Options, records: Iterable[runs.Record]
) -> list[Run]:
    """Return the runs of an experiment.

    Args:
        experiment: A name in `EXPERIMENTS`.
        options: The options of the command line.
        records: The former runs, from which the learning rates are chosen.

    Raises:
        UserError: No learning rate has been chosen for a method.
    """
    records = list(records)
    methods = options.methods or EXPERIMENTS[experiment]
    tuning = experiment == "learning-rates"
    rates = {
        method: options.rates if tuning else (rate_of(method, options, records),)
        for method in methods
    }
    return [
        Run(
            experiment=experiment,
            method=method,
            seed=seed,
            learning_rate=rate,
            budget=budget,
            steps=_steps(experiment, budget, options),
            batch_size=options.batch_size,
            sequence_length=options.sequence_length,
            backend=options.backend,
        )
        for seed in range(1 if tuning else options.seeds)
        for budget in (options.budgets if experiment == "few-shot" else (EVERYTHING,))
        for method in methods
        for rate in rates[method]
    ]


def tuned_as(method: str) -> str:
    """Return the method whose learning rate is used: all bases share RandLoRA's."""
    return re.sub(rf"-({'|'.join(BASES)})(?=:|$)", "", method)


def chosen_rate(method: str, options: Options, records: Iterable[runs.Record]) -> float:
    """Return the learning rate with the lowest validation loss.

    Raises:
        UserError: `learning-rates` has not been run for the method, or with
            fewer learning rates than for others.
    """
    tried = runs.matching(
        records,
        experiment="learning-rates",
        steps=options.steps,
        batch_size=options.batch_size,
        sequence_length=options.sequence_length,
        backend=options.backend,
    )
    grid = {record["learning_rate"] for record in tried}
    losses = {
        rate: [record["validation_loss"] for record in found]
        for rate in grid
        if (found := runs.matching(tried, method=method, learning_rate=rate))
    }
    if not losses or len(losses) < len(grid):
        raise UserError(
            f"No learning rate is chosen for {method!r} with {options.steps} steps of "
            f"{options.batch_size} × {options.sequence_length} tokens on "
            f"{options.backend}: {len(losses)} of {len(grid)} rates were tried. Run "
            f"`learning-rates --methods {method}` into the same file, or give "
            "`--learning-rate`."
        )
    return min(losses, key=lambda rate: statistics.fmean(losses[rate]))


def rate_of(method: str, options: Options, records: Iterable[runs.Record]) -> float:
    """Return the learning rate of a method: the given or the chosen one."""
    if options.learning_rate is not None:
        return options.learning_rate
    return chosen_rate(tuned_as(method), options, records)


def _steps(experiment: str, budget: str, options: Options) -> int:
    """Return the steps of a run: in few-shot one epoch of a large budget."""
    if experiment != "few-shot" or not budget.endswith("%"):
        return options.steps
    sentences = TRAIN_SIZE * int(budget.removesuffix("%")) // 100
    return max(options.steps, sentences // options.batch_size)


def _table3() -> tuple[str, ...]:
    """Return updates of rank 48, 192 and 384 with about as many parameters."""
    bases = SMALLER_SIDE // TABLE3_RANK
    ranks = (1, TABLE3_RANK // 2, TABLE3_RANK)
    return tuple(f"randlora-{rank}-n{bases}:2" for rank in ranks)


def _tuned() -> tuple[str, ...]:
    """Return the methods with their own search for a learning rate, each once."""
    everything = (*METHODS, *FEW_SHOT_METHODS, *_table3())
    return tuple(dict.fromkeys(map(tuned_as, everything)))


EXPERIMENTS: dict[str, tuple[str, ...]] = {
    "learning-rates": _tuned(),
    "methods": METHODS,
    "table3": _table3(),
    "table4": (
        "randlora-as-lora-16:2",
        *(f"randlora-as-lora-16-{basis}:2" for basis in BASES),
    ),
    "few-shot": FEW_SHOT_METHODS,
}
