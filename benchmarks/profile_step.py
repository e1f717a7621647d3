"""Profile of a training step, by operation.

    python -m benchmarks.profile_step --backend torch --methods keras-lora

Methods run in turn in one process; times of operations are those of `traces.py`.
Operations that take little time in every method share one row.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import command_line, results
from benchmarks.cases import (
    ALL_LINEAR,
    BACKENDS,
    Case,
    batch_shape,
    layer_names,
    method_name,
)
from benchmarks.models import MODELS
from benchmarks.processes import environment, limit_threads
from benchmarks.step_time import describe

METHODS = ("keras-lora", "randlora-uniform", "randlora-kronecker")
SMALL = 0.005
REST = "all others"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the profile of the command line."""
    options = parse(arguments)
    os.environ |= environment(options.backend, options.threads, "cpu")
    limit_threads(options.threads)
    batch, length = options.tokens
    profiles = {}
    for method in options.methods:
        case = Case(
            options.backend,
            method,
            options.model,
            options.targets,
            batch,
            length,
            rank=options.rank,
            threads=options.threads,
        )
        profiles[method] = profile(case, options.steps)
        print(method, f"{sum(profiles[method].values()):.0f} ms per step", flush=True)
    settings = command_line.settings(options)
    result = results.new("profile", settings)
    rows = compared(profiles)
    result["cases"].append({"heading": f"{describe(case)}, ms per step", "rows": rows})
    results.write(result, options.out, "Milliseconds of a step by operation")
    return results.show(result, options.out)


def profile(case: Case, steps: int) -> dict[str, float]:
    """Return the milliseconds of each operation in a step."""
    from benchmarks import traces
    from benchmarks.session import open_session

    session = open_session(case)
    for _ in range(2):
        session.step()

    def run() -> None:
        for _ in range(steps):
            session.step()

    spent = traces.milliseconds(run, case.backend)
    return {name: value / steps for name, value in spent.items()}


def compared(profiles: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Return one row per operation, with the milliseconds of each method.

    Args:
        profiles: The results of `profile`, by method.
    """
    totals = {method: sum(spent.values()) for method, spent in profiles.items()}
    names = dict.fromkeys(name for spent in profiles.values() for name in spent)
    large = [
        name
        for name in names
        if any(
            spent.get(name, 0) >= SMALL * totals[method]
            for method, spent in profiles.items()
        )
    ]
    rows = [
        {
            "operation": name,
            "ms": {method: spent.get(name, 0.0) for method, spent in profiles.items()},
        }
        for name in large
    ]
    rest = {
        method: totals[method] - sum(row["ms"][method] for row in rows)
        for method in profiles
    }
    return [*rows, {"operation": REST, "ms": rest}, {"operation": "all", "ms": totals}]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = command_line.parser(__doc__, "profile.json")
    add = parser.add_argument
    add("--backend", choices=BACKENDS, default="torch")
    add("--model", choices=MODELS, default="smollm2")
    add("--targets", type=layer_names, default=(ALL_LINEAR,))
    add("--tokens", type=batch_shape, default=(8, 256))
    add("--methods", nargs="+", type=method_name, default=METHODS)
    add("--steps", type=int, default=2, help="profiled, after two of warm-up")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
