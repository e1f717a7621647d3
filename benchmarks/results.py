"""Output of results: a JSON file, a PNG file, and printed tables."""

import json
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.plots import PLOTS
from benchmarks.report import tables

RAW = Path(__file__).parent / "results" / "raw"


def new(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return an empty result with its kind, machine and options."""
    return {
        "kind": kind,
        "machine": machine.describe(),
        "settings": settings,
        "cases": [],
    }


def write(result: dict[str, Any], path: Path, title: str) -> None:
    """Write a result as JSON, and as PNG if there is a plot.

    It is called after each case, so an interrupted run keeps its results.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)
    if result["kind"] in PLOTS:
        PLOTS[result["kind"]](result, path.with_suffix(".png"), title)


def show(result: dict[str, Any], path: Path) -> int:
    """Print a result's tables; return 1 if something failed, else 0."""
    plot = " and .png" if result["kind"] in PLOTS else ""
    print(tables(result), f"Written to {path.name}{plot}.", sep="\n\n")
    return int(any("error" in row for case in result["cases"] for row in case["rows"]))
