"""Runs of the comparison, choice of learning rates, and tables.

First every method tries the same learning rates on the validation set. Then it is
trained with the best one from several seeds and evaluated on the test set.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from examples import runs
from examples.command_line import UserError

METHODS = (
    "full",
    "head",
    "lora-4",
    "matrixlora-4",
    "lora-16",
    "matrixlora-16",
    "randlora-as-lora-4",
    "randlora-as-lora-16",
    "randlora-as-lora-16-kronecker",
    "vera-96",
)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TUNING_SEED = 1000  # not one of the seeds evaluated on the test set

# Runs with equal settings are comparable.
SETTINGS = ("pictures", "preset", "steps", "batch_size", "backend")
COLUMNS = {
    "test accuracy, %": ("accuracy", 1, 0.01),
    "test loss": ("loss", 3, 1),
    "trainable": ("trained", 0, 1),
    "% of the model": ("share", 1, 0.01),
    "learning rate": ("learning_rate", 5, 1),
    "s per run": ("seconds", 1, 1),
}


@dataclass(frozen=True)
class Run:
    """One training run: its fields identify its record.

    Attributes:
        part: The set it is evaluated on: `validation` or `test`.
        method: A method of `examples/methods.py`.
        seed: Of the bases, a new head and the order of the images.
        learning_rate: The peak of the schedule.
        steps: Optimizer steps.
        batch_size: Images per step.
        preset: The model that is fine-tuned.
        pictures: The folder of images, or `digits`.
        backend: The backend of Keras.
    """

    part: str
    method: str
    seed: int
    learning_rate: float
    steps: int
    batch_size: int
    preset: str
    pictures: str
    backend: str


def tuning(common: Run, methods: Iterable[str], rates: Iterable[float]) -> list[Run]:
    """Return the runs that try each learning rate with each method."""
    plan = replace(common, part="validation", seed=TUNING_SEED)
    rates = list(rates)
    return [
        replace(plan, method=method, learning_rate=rate)
        for method in methods
        for rate in rates
    ]


def judged(
    common: Run, methods: Iterable[str], seeds: int, records: Iterable[runs.Record]
) -> list[Run]:
    """Return the runs evaluated on the test set, with the chosen learning rates."""
    records = list(records)
    plans = [
        replace(
            common, method=method, learning_rate=chosen_rate(common, method, records)
        )
        for method in methods
    ]
    return [
        replace(plan, part="test", seed=seed) for seed in range(seeds) for plan in plans
    ]


def chosen_rate(common: Run, method: str, records: Iterable[runs.Record]) -> float:
    """Return the learning rate with the lowest validation loss.

    Raises:
        UserError: No learning rate was tried.
    """
    settings = {name: getattr(common, name) for name in SETTINGS}
    tried = runs.matching(records, part="validation", method=method, **settings)
    if not tried:
        raise UserError(
            f"No learning rate is chosen for {method!r} with {settings}: run `compare` "
            "into the same `--out` with the same options, or give `--learning-rate`."
        )
    return min(tried, key=lambda record: record["loss"])["learning_rate"]


def tables(records: Iterable[runs.Record]) -> str:
    """Return the Markdown tables of the records, two for each setting."""
    records = sorted(records, key=lambda record: runs.place(METHODS, record["method"]))
    parts = []
    for settings, group in runs.grouped(records, SETTINGS):
        tried = runs.matching(group, part="validation")
        final = runs.matching(group, part="test")
        title = "## {pictures}, {preset}, {steps} steps of {batch_size}, {backend}"
        parts += [
            title.format(**settings),
            "Test set, with the learning rate of the lowest validation loss:",
            runs.table(final, "method", COLUMNS),
            "Validation loss by learning rate:",
            runs.tuning_table(tried, "loss"),
        ]
    return "\n\n".join(parts)
