"""Markdown tables of the records: a table for each setting, a row for each method."""

import re
from collections.abc import Iterable
from typing import Any

from examples import runs
from examples.commonsense.questions import TASKS

SETTINGS = ("preset", "backend", "targets", "batch_size", "cutoff", "train_examples")
SETTINGS += ("test_examples", "generate_examples")


def tables(records: list[runs.Record]) -> str:
    """Return the tables of all settings."""
    parts = []
    for settings, group in runs.grouped(records, SETTINGS):
        named = [f"{name.replace('_', ' ')} {v}" for name, v in settings.items()]
        parts += [f"**{', '.join(named)}**", _tables_of(group)]
    return "\n\n".join(parts)


def _tables_of(records: list[runs.Record]) -> str:
    records = sorted(records, key=_place)
    lines = [{**record, "method": label(record, records)} for record in records]
    parts = []
    for way in ("likelihood", "generated"):
        if not any(f"mean/{way}" in record for record in lines):
            continue
        columns = {
            f"{name}, %": (f"{name}/{way}", 1, 0.01) for name in (*TASKS, "mean")
        }
        if way == "likelihood":
            columns |= {
                "held-out loss": ("held_out_loss", 3, 1),
                "trainable, M": ("trained", 2, 1e6),
                "minutes": ("seconds", 1, 60),
                "peak, GB": ("peak_bytes", 2, 1e9),
            }
        parts.append(f"By {way}:\n\n{runs.table(lines, 'method', columns)}")
    return "\n\n".join(parts)


def _place(record: runs.Record) -> tuple[Any, ...]:
    """Return the sort key of a record: methods of equal rank are neighbours."""
    method, rate = record["method"], record["learning_rate"] or 0.0
    rank = re.search(r"-(\d+)", method)
    return int(rank[1]) if rank else 0, rate > 0, method, rate, record["seed"]


def label(record: runs.Record, records: Iterable[runs.Record]) -> str:
    """Return a record's method, with learning rate and steps where these differ."""
    own = runs.matching(records, method=record["method"])
    text = record["method"]
    for name, form in (("learning_rate", "learning rate {:g}"), ("steps", "{} steps")):
        if len({other[name] for other in own}) > 1:
            text += ", " + form.format(record[name])
    return text
