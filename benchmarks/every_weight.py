"""Step time and memory where kernels are read: Gemma 4's blocks, Mixtral's experts.

    python -m benchmarks.every_weight --backends torch --models mixtral

| model | sizes | compared with |
|---|---|---|
| `gemma4` | 2 blocks, 1,024 wide, inside 4,096, 8 heads | Keras LoRA, all linear |
| `mixtral` | 1 layer, 512 wide, 8 experts of 1,792 | full fine-tuning of the experts |

Each method runs in its own process, one after the other, in several rounds; a ratio is
the median over the rounds.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import command_line, results
from benchmarks.cases import BACKENDS
from benchmarks.processes import rows_of

# The first of each is the reference for the others.
METHODS = {
    "gemma4": ("keras-lora", "randlora-kronecker", "randlora-uniform"),
    "mixtral": ("full", "randlora-kronecker", "randlora-uniform", "peft-lora"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement of the command line; return 1 if something failed."""
    options = parse(arguments)
    settings = command_line.settings(options)
    result = results.new("every_weight", settings)
    for model in options.models:
        for backend in options.backends:
            heading = f"{backend}, {model}, {options.tokens[model]} tokens"
            print(heading, flush=True)
            rows = compared(measured(model, backend, settings, options.rounds))
            result["cases"].append({"heading": heading, "rows": rows})
            results.write(result, options.out, heading)
    return results.show(result, options.out)


def measured(
    model: str, backend: str, settings: dict[str, Any], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each method, one for each round."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for method in METHODS[model]:
            if method == "peft-lora" and backend != "torch":
                continue
            asked = {
                **settings,
                "model": model,
                "method": method,
                "tokens": settings["tokens"][model],
            }
            module = "benchmarks.every_weight_worker"
            (row,) = rows_of(module, asked, backend, settings["threads"])
            rows.setdefault(method, []).append(row)
    return rows


def compared(rows: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return a row for each method, with its ratios to the first one."""
    (reference, first), *_ = rows.items()
    summed = []
    for method, its in rows.items():
        failed = [row for row in (*its, *first) if "error" in row]
        if failed:
            summed.append({"method": method, "error": failed[0]["error"]})
            continue
        row: dict[str, Any] = {"method": method, "reference": reference}
        for name in ("median_s", "grown_bytes", "peak_bytes"):
            row[name] = statistics.median(one[name] for one in its)
            ratios = [a[name] / b[name] for a, b in zip(its, first, strict=True)]
            row[f"{name}_ratio"] = statistics.median(ratios)
        summed.append({**row, "trainable": its[0]["trainable"]})
    return summed


def parse(arguments: Sequence[str] | None) -> Any:
    """Return the options."""
    parser = command_line.parser(__doc__, "every_weight.json")
    add = parser.add_argument
    add("--models", nargs="+", choices=METHODS, default=list(METHODS))
    add("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    add("--lora-rank", type=int, default=16)
    add("--rounds", type=int, default=3)
    add("--steps", type=int, default=5, help="repetitions; the median counts")
    options = parser.parse_args(arguments)
    options.tokens = {"gemma4": 1024, "mixtral": 2048}
    return options


if __name__ == "__main__":
    raise SystemExit(main())
