"""Where a training step spends its time on torch, operation by operation.

    python -m benchmarks.profile_step --methods keras-lora randlora-kronecker

Each method in turn in one process: milliseconds of the main thread within an operation
itself, without those that it calls. Operations that matter to no method are one line.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.cases import ALL_LINEAR, Case, batch_shape, layer_names, method_name
from benchmarks.models import MODELS
from benchmarks.step_time import describe

METHODS = ("keras-lora", "randlora-uniform", "randlora-kronecker")
SMALL = 0.005
REST = "all others"


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile what the command line asks for."""
    options = parse(arguments)
    os.environ["KERAS_BACKEND"] = "torch"
    batch, length = options.tokens
    profiles = {}
    for method in options.methods:
        case = Case(
            "torch",
            method,
            options.model,
            options.targets,
            batch,
            length,
            rank=options.rank,
            threads=options.threads,
        )
        profiles[method] = profile(case, options.steps)
        print(method, f"{sum(profiles[method].values()):.0f} ms a step", flush=True)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    result = results.new("profile", settings)
    rows = compared(profiles)
    result["cases"].append({"heading": f"{describe(case)}, ms a step", "rows": rows})
    results.write(result, options.out, "Milliseconds of a step by operation")
    return results.show(result, options.out)


def profile(case: Case, steps: int) -> dict[str, float]:
    """Return the milliseconds of a step within each operation."""
    import torch
    from torch.profiler import ProfilerActivity

    from benchmarks.session import open_session

    torch.set_num_threads(case.threads)
    session = open_session(case)
    for _ in range(2):
        session.step()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            session.step()
    spent = {
        event.key: event.self_cpu_time_total / 1e3 / steps
        for event in profiler.key_averages()
    }
    return {name: spent[name] for name in sorted(spent, key=spent.get, reverse=True)}


def compared(profiles: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Return a row for each operation, with the milliseconds of each method.

    Args:
        profiles: What `profile` returned, by method.
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="smollm2")
    add("--targets", type=layer_names, default=(ALL_LINEAR,))
    add("--tokens", type=batch_shape, default=(8, 256))
    add("--methods", nargs="+", type=method_name, default=METHODS)
    add("--rank", type=int, default=32, help="of the bases of RandLoRA")
    add("--threads", type=int, default=2)
    add("--steps", type=int, default=2, help="profiled, after two of warm-up")
    add("--out", type=Path, default=results.RAW / "profile.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
