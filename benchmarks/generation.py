"""Time of `generate` with the adapter on, beside the base's and Keras LoRA's.

    python -m benchmarks.generation --backends jax

A Llama with random weights answers a prompt greedily, one token a step with a
key-value cache. `merged` is the adapted model within `with kr.merged(model)`. All
methods of a backend are in one process and answer in turn; a ratio is the median over
the rounds.
"""

from collections.abc import Sequence
from typing import Any

from benchmarks import command_line, results
from benchmarks.cases import BACKENDS
from benchmarks.models import MODELS
from benchmarks.processes import rows_of

METHODS = ("base", "keras-lora", "randlora-kronecker", "randlora-uniform", "merged")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement of the command line; return 1 if something failed."""
    options = parse(arguments)
    settings = command_line.settings(options)
    result = results.new("generation", settings)
    for backend in options.backends:
        heading = f"{backend}, {options.model}, {options.tokens} tokens"
        print(heading, flush=True)
        module = "benchmarks.generation_worker"
        rows = rows_of(module, settings, backend, options.threads)
        result["cases"].append({"heading": heading, "rows": rows})
        results.write(result, options.out, heading)
    return results.show(result, options.out)


def parse(arguments: Sequence[str] | None) -> Any:
    """Return the options."""
    parser = command_line.parser(__doc__, "generation.json")
    add = parser.add_argument
    add("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--model", choices=MODELS, default="llama-12-blocks")
    add("--dtype", default="float32")
    add("--lora-rank", type=int, default=16)
    add("--prompt", type=int, default=16, help="tokens of the prompt")
    add("--tokens", type=int, default=112, help="tokens of the answer")
    add("--rounds", type=int, default=5)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
