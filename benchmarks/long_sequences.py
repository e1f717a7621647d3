"""Peak memory against sequence length: activation checkpointing, accumulation.

python -m benchmarks.long_sequences --lengths 512 1024 --backends jax
"""

import argparse
from collections.abc import Sequence

from benchmarks import command_line, results
from benchmarks.cases import ALL_LINEAR, BACKENDS, layer_names
from benchmarks.models import MODELS
from benchmarks.processes import rows_of

WAYS = {
    "whole": dict(remat=False, passes=1),
    "remat": dict(remat=True, passes=1),
    "2 passes": dict(remat=False, passes=2),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement of the command line; return 1 if something failed."""
    options = parse(arguments)
    settings = command_line.settings(options)
    result = results.new("long_sequences", settings)
    for backend in options.backends:
        heading = (
            f"{backend}, {options.model}, {', '.join(options.targets)}, "
            f"{options.batch} sequences, rank {options.rank}"
        )
        rows: list[dict] = []
        result["cases"].append({"heading": heading, "backend": backend, "rows": rows})
        for length in options.lengths:
            for way in options.ways:
                print(f"{heading}, {length} tokens: {way}", flush=True)
                asked = {**settings, **WAYS[way], "length": length}
                module = "benchmarks.sequence_worker"
                for row in rows_of(module, asked, backend, options.threads):
                    name = {"method": f"{way}, {length}"} if "error" in row else {}
                    rows.append({"way": way, "length": length, **row, **name})
                results.write(result, options.out, "Peak memory of a training step")
    return results.show(result, options.out)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = command_line.parser(__doc__, "long_sequences.json")
    add = parser.add_argument
    add("--model", choices=MODELS, default="smollm2")
    add("--targets", type=layer_names, default=(ALL_LINEAR,))
    add("--lengths", nargs="+", type=int, default=[256, 512, 1024, 2048])
    add("--batch", type=int, default=2, help="sequences, over all passes")
    add("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    add("--backends", nargs="+", choices=BACKENDS, default=["torch"])
    add("--steps", type=int, default=1, help="after one that warms up")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
