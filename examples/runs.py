"""Records of training runs, one line of JSON each, and tables with mean ± deviation.

A file of records only grows. Runs in the file are not repeated, several processes may
write to it, and an interrupted series keeps its finished runs.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, memory
from benchmarks.report import markdown, number

Record = dict[str, Any]


def measured(run: Callable[[], Mapping[str, Any]], **what: Any) -> Record:
    """Run and return the record: identity, measurements, seconds, memory, machine.

    Args:
        run: Returns its measurements, in JSON types.
        **what: Identifies the run: `method`, `seed`, `learning_rate`, ….

    Returns:
        `{**what, **measured, "seconds", "peak_bytes", "machine"}`; the bytes are the
        peak of the process during the run.
    """
    host = memory.HostMemory()
    host.settle()
    started = time.perf_counter()
    found = dict(run())
    seconds = time.perf_counter() - started
    peak = host.peak()
    return {
        **what,
        **found,
        "seconds": round(seconds, 2),
        "peak_bytes": peak,
        "machine": machine.describe(),
    }


def append(record: Mapping[str, Any], path: Path) -> None:
    """Add a record to a file in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[Record]:
    """Return the records of a file; none if there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def to_show(path: Path, published: Path) -> list[Record]:
    """Return the records of a file, for tables.

    Args:
        path: The file.
        published: A file with records, for the message.

    Raises:
        FileNotFoundError: There are none.
    """
    records = read(path)
    if not records:
        raise FileNotFoundError(
            f"There are no records in {path}. Make some first, name their file with "
            f"`--out`, or look at the published ones: `--out {shown(published)}`."
        )
    return records


def shown(path: Path) -> str:
    """Return a path relative to the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def matching(records: Iterable[Record], **what: Any) -> list[Record]:
    """Return the records that have all of these values."""
    return [r for r in records if all(r.get(k) == v for k, v in what.items())]


def place(known: Sequence[str], name: str) -> int:
    """Return the position of a name in a known order; last if it is not in it."""
    return known.index(name) if name in known else len(known)


def grouped(
    records: Iterable[Record], by: Sequence[str]
) -> list[tuple[Record, list[Record]]]:
    """Return the records that agree in some fields, with the values of these."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in by), []).append(record)
    return [(dict(zip(by, values, strict=True)), g) for values, g in groups.items()]


def run_once(path: Path, run: Callable[[], Mapping[str, Any]], **what: Any) -> Record:
    """Return the record of a run, from the file if it is there."""
    if found := matching(read(path), **what):
        return found[-1]
    record = measured(run, **what)
    append(record, path)
    return record


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return `mean ± sample standard deviation`; the mean alone for equal values."""
    if not values:
        return "–"
    mean = number(statistics.fmean(values), digits)
    if len(set(values)) == 1:
        return mean
    return f"{mean} ± {number(statistics.stdev(values), digits)}"


def table(
    records: Sequence[Record], by: str, columns: Mapping[str, tuple[str, int, float]]
) -> str:
    """Return a Markdown table, one row per value of one field.

    Args:
        records: The runs; those of one row differ in their seeds only.
        by: The field of the rows, in the order of the records.
        columns: `{head: (field, decimals, unit)}`; values are divided by the unit.
    """
    lines = []
    for value in dict.fromkeys(record[by] for record in records):
        group = matching(records, **{by: value})
        cells = [
            spread([r[field] / unit for r in group if r.get(field) is not None], digits)
            for field, digits, unit in columns.values()
        ]
        lines.append([f"`{value}`", str(len(group)), *cells])
    return markdown([by, "runs", *columns], lines)


def tuning_table(records: Sequence[Record], loss: str) -> str:
    """Return a Markdown table of a loss: a row per method, a column per rate."""
    rates = {
        rate: f"{rate:g}" for rate in sorted({r["learning_rate"] for r in records})
    }
    lines = [
        {"method": r["method"], rates[r["learning_rate"]]: r[loss]} for r in records
    ]
    return table(lines, "method", {rate: (rate, 3, 1) for rate in rates.values()})
