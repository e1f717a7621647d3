"""Seconds to enable, summarize, save, load and merge; bytes of files and of bases.

python -m benchmarks.life_cycle --backends jax --rank 32
"""

import argparse
from collections.abc import Sequence

from benchmarks import command_line, results
from benchmarks.cases import ALL_LINEAR, BACKENDS, layer_names
from benchmarks.models import MODELS
from benchmarks.processes import rows_of

STORAGES = (
    "uniform",
    "ternary",
    "kronecker",
    "uniform-auto-regenerated",
    "ternary-auto-regenerated",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement of the command line; return 1 if something failed."""
    options = parse(arguments)
    settings = command_line.settings(options)
    result = results.new("life_cycle", settings)
    runs = [(backend, "cycle_worker") for backend in options.backends]
    runs += [] if options.no_peft else [("PEFT", "cycle_peft")]
    for name, module in runs:
        heading = (
            f"{name}, {options.model}, {', '.join(options.targets)}, "
            f"rank {options.rank} (LoRA {options.lora_rank})"
        )
        print(heading, flush=True)
        backend = "torch" if name == "PEFT" else name
        rows = rows_of(f"benchmarks.{module}", settings, backend, options.threads)
        result["cases"].append({"heading": heading, "backend": name, "rows": rows})
        results.write(result, options.out, "Life cycle of an adapter, in seconds")
    return results.show(result, options.out)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = command_line.parser(__doc__, "life_cycle.json")
    add = parser.add_argument
    add("--model", choices=MODELS, default="smollm2")
    add("--targets", type=layer_names, default=(ALL_LINEAR,))
    add("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    add("--no-peft", action="store_true", help="without PEFT's side")
    add("--storages", nargs="+", default=STORAGES, help="bases to count the bytes of")
    add("--lora-rank", type=int, default=16, help="of PEFT's LoRA")
    add("--repeats", type=int, default=3, help="repetitions; the median counts")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
