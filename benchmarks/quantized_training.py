"""Perplexity after fine-tuning SmolLM2 on a base of each precision.

python -m benchmarks.quantized_training --quantizations float32 int4-32 --steps 100

Held-out perplexity before training, after it, and after merging: with `dequantize`, and
quantized again.
"""

import argparse
from collections.abc import Sequence

from benchmarks import command_line, results
from benchmarks.cases import BACKENDS
from benchmarks.processes import rows_of

# Mode, rows of a block, whether the embedding is quantized too.
QUANTIZATIONS = {
    "float32": (None, None, False),
    "int8": ("int8", None, True),
    "int4": ("int4", 128, True),
    "int4-32": ("int4", 32, False),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement of the command line; return 1 if something failed."""
    options = parse(arguments)
    settings = command_line.settings(options)
    result = results.new("quantized_training", settings)
    heading = (
        f"{options.backend}, smollm2, all-linear, rank {options.rank}, "
        f"{options.basis}, {options.steps} steps of {options.batch_size}×"
        f"{options.length} tokens"
    )
    rows: list[dict] = []
    result["cases"].append({"heading": heading, "rows": rows})
    for name in options.quantizations:
        print(f"{heading}: {name}", flush=True)
        asked = {**settings, "quantization": QUANTIZATIONS[name]}
        module = "benchmarks.quantized_worker"
        for row in rows_of(module, asked, options.backend, options.threads):
            rows.append({**row, "method": name})
        results.write(result, options.out, "Held-out perplexity by precision")
    return results.show(result, options.out)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = command_line.parser(__doc__, "quantized_training.json", rank=16)
    add = parser.add_argument
    add("--quantizations", nargs="+", choices=QUANTIZATIONS, default=[*QUANTIZATIONS])
    add("--backend", choices=BACKENDS, default="jax")
    add("--basis", default="kronecker")
    add("--steps", type=int, default=100)
    add("--learning-rate", type=float, default=1e-3)
    add("--batch-size", type=int, default=4)
    add("--length", type=int, default=128, help="tokens of a window")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
