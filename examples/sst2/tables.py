"""Markdown tables of every experiment, made from the records."""

from collections.abc import Iterable

from examples import runs
from examples.sst2.experiments import BUDGETS, EXPERIMENTS

Columns = dict[str, tuple[str, int, float]]

COLUMNS: Columns = {
    "dev accuracy, %": ("dev_accuracy", 1, 0.01),
    "dev loss": ("dev_loss", 3, 1),
    "train loss": ("train_loss", 3, 1),
    "trainable": ("trained", 0, 1),
    "without the head": ("beside_head", 0, 1),
    "update rank": ("update_rank", 0, 1),
    "learning rate": ("learning_rate", 4, 1),
    "ms per step": ("step_seconds", 0, 1e-3),
    "s per run": ("seconds", 0, 1),
    "peak, MB": ("peak_bytes", 0, 1e6),
}
# Runs with equal settings are comparable.
SETTINGS = ("steps", "batch_size", "sequence_length", "backend")


def tables(records: Iterable[runs.Record]) -> str:
    """Return the tables of all experiments in the records."""
    records = list(records)
    parts = []
    for experiment in EXPERIMENTS:
        found = runs.matching(records, experiment=experiment)
        found = sorted(found, key=_place)
        if found:
            parts += [f"## {experiment}", *_PARTS.get(experiment, _measured)(found)]
    return "\n\n".join(parts)


def _place(record: runs.Record) -> tuple[int, int, int]:
    """Return the sort key of a record: its place in the experiment."""
    return (
        runs.place(BUDGETS, record["budget"]),
        runs.place(EXPERIMENTS[record["experiment"]], record["method"]),
        record["seed"],
    )


def _measured(records: list[runs.Record]) -> list[str]:
    """Return all measurements, one row per method."""
    parts = []
    for settings, group in runs.grouped(records, ("budget", *SETTINGS)):
        parts += [_heading(settings), runs.table(group, "method", COLUMNS)]
    return parts


def _tuning(records: list[runs.Record]) -> list[str]:
    """Return the validation loss at each learning rate, one row per method."""
    parts = []
    for settings, group in runs.grouped(records, SETTINGS):
        parts += [
            f"Validation loss by learning rate; {_heading(settings)}",
            runs.tuning_table(group, "validation_loss"),
        ]
    return parts


def _few_shot(records: list[runs.Record]) -> list[str]:
    """Return the accuracy of each budget, one row per method; then everything."""
    parts = []
    settings = tuple(name for name in SETTINGS if name != "steps")
    for values, group in runs.grouped(records, settings):
        budgets = dict.fromkeys(record["budget"] for record in group)
        columns: Columns = {
            budget if "%" in budget else f"{budget} per class": (budget, 1, 0.01)
            for budget in budgets
        }
        lines = [
            {"method": record["method"], record["budget"]: record["dev_accuracy"]}
            for record in group
        ]
        parts += [
            f"Dev accuracy, %, by training examples; {_heading(values)}",
            runs.table(lines, "method", columns),
        ]
    return [*parts, *_measured(records)]


_PARTS = {"learning-rates": _tuning, "few-shot": _few_shot}


def _heading(settings: runs.Record) -> str:
    named = {
        "budget": "budget {}",
        "steps": "{} steps",
        "batch_size": "batches of {}",
        "sequence_length": "{} tokens",
        "backend": "{}",
    }
    return ", ".join(named[name].format(value) for name, value in settings.items())
