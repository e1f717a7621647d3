"""Step time and peak memory of whole models: full fine-tuning, LoRA, RandLoRA, PEFT.

python -m benchmarks.step_time --tokens 8x256 --methods keras-lora randlora-uniform
"""

import argparse
import itertools
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
from benchmarks.race import race

BASES = ("uniform", "kronecker", "ternary")
KERAS = ("full", "keras-lora", *(f"randlora-{basis}" for basis in BASES))
WAYS = tuple(
    f"randlora-{basis}-{compute}"
    for basis in BASES
    for compute in ("materialized", "factored")
)
PEFT = ("peft-lora", "peft-randlora")


def main(
    arguments: Sequence[str] | None = None, device: str = "cpu", **defaults: Any
) -> int:
    """Run the measurement of the command line; return 1 if a method failed."""
    options = parse(arguments, defaults)
    settings = command_line.settings(options)
    result = results.new("step_time", settings)
    runs = itertools.product(
        options.models, options.targets, options.tokens, options.backends
    )
    for model, targets, (batch, length), backend in runs:
        cases = [
            Case(
                backend=backend,
                method=method,
                model=model,
                targets=targets,
                batch=batch,
                length=length,
                rank=options.rank,
                lora_rank=options.lora_rank,
                dtype=options.dtype,
                threads=options.threads,
                device=device,
            )
            for method in options.methods
            if backend == "torch" or method not in PEFT
        ]
        heading = describe(cases[0])
        print(f"{heading}: {', '.join(case.method for case in cases)}", flush=True)
        rows = race(cases, options.steps)
        result["cases"].append({"heading": heading, "backend": backend, "rows": rows})
        results.write(result, options.out, "Step time ÷ Keras LoRA's")
    return results.show(result, options.out)


def describe(case: Case) -> str:
    """Return the common settings of the methods of one table."""
    return (
        f"{case.backend}, {case.model}, {', '.join(case.targets)}, "
        f"{case.batch}×{case.length} tokens, {case.dtype}, rank {case.rank} "
        f"(LoRA {case.lora_rank})"
    )


def parse(
    arguments: Sequence[str] | None, defaults: dict[str, Any]
) -> argparse.Namespace:
    """Return the options; `defaults` overrides some defaults."""
    parser = command_line.parser(__doc__, "step_time.json")
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=["smollm2"])
    add("--targets", nargs="+", type=layer_names, default=[(ALL_LINEAR,)])
    add("--tokens", nargs="+", type=batch_shape, default=[(8, 256)])
    add("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    add("--methods", nargs="+", type=method_name, default=[*KERAS, *PEFT])
    add("--all-ways", action="store_true", help="materialized and factored, each basis")
    add("--lora-rank", type=int, default=16)
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--steps", type=int, default=3, help="rounds, after two steps of warm-up")
    parser.set_defaults(**defaults)
    options = parser.parse_args(arguments)
    if options.all_ways:
        options.methods = list(dict.fromkeys([*options.methods, *WAYS]))
    for model, targets in itertools.product(options.models, options.targets):
        try:
            MODELS[model].targeted(targets)
        except ValueError as error:
            parser.error(str(error))
    return options


if __name__ == "__main__":
    raise SystemExit(main())
