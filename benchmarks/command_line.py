"""Common options of the benchmark commands."""

import argparse
from pathlib import Path
from typing import Any

from benchmarks import results


def parser(
    description: str | None, out: str, rank: int = 32
) -> argparse.ArgumentParser:
    """Return a parser of the options that every command has.

    Args:
        description: The docstring of the command's module.
        out: Name of the file that results are written to by default.
        rank: Rank of the bases by default.
    """
    shared = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared.add_argument(
        "--rank", type=int, default=rank, help="of the bases of RandLoRA"
    )
    shared.add_argument("--threads", type=int, default=2, help="the same for all")
    shared.add_argument(
        "--out", type=Path, default=results.RAW / out, help="a JSON file"
    )
    return shared


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the measurement, in JSON types."""
    return {name: value for name, value in vars(options).items() if name != "out"}
