"""One linear layer, forward and backward: Keras LoRA, materialized, factored RandLoRA.

    python -m benchmarks.single_layer --kernels 576x576 1024x4096 --tokens 128 1024

It shows the cost by width, tokens and rank, where factored is faster than materialized,
and the choice of `compute="auto"`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import command_line, results
from benchmarks.cases import BACKENDS
from benchmarks.processes import rows_of

KERNELS = ("576x576", "1024x1024", "2048x2048", "4096x4096", "576x2304", "1024x4096")
BASES = ("uniform", "kronecker", "ternary")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement of the command line; return 1 if a method failed."""
    options = parse(arguments)
    settings = command_line.settings(options)
    result = results.new("single_layer", settings)
    for backend in options.backends:
        heading = (
            f"{backend}, one layer, {options.dtype}, LoRA rank {options.lora_rank}"
        )
        print(heading, flush=True)
        rows = rows_of("benchmarks.layer_worker", settings, backend, options.threads)
        result["cases"].append({"heading": heading, "backend": backend, "rows": rows})
        results.write(result, options.out, "One layer: time ÷ Keras LoRA's")
    return results.show(result, options.out)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kernels", nargs="+", type=sides, default=list(map(sides, KERNELS)))
    add("--tokens", nargs="+", type=int, default=[128, 1024])
    add("--ranks", nargs="+", type=int, default=[32])
    add(
        "--ranks-at",
        nargs=2,
        metavar=("KERNEL", "TOKENS"),
        default=("1024x1024", "1024"),
        help="the layer that is also measured at ranks 8, 64 and 256",
    )
    add("--no-ranks", action="store_true", help="leave those out")
    add("--bases", nargs="+", default=BASES)
    add("--lora-rank", type=int, default=16)
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    add("--threads", type=int, default=2)
    add("--seconds", type=float, default=3.0, help="for the rounds of one layer")
    add("--out", type=Path, default=results.RAW / "single_layer.json")
    options = parser.parse_args(arguments)
    options.layers = [
        (*kernel, tokens, rank)
        for kernel in options.kernels
        for tokens in options.tokens
        for rank in options.ranks
    ]
    if not options.no_ranks:
        kernel, tokens = sides(options.ranks_at[0]), int(options.ranks_at[1])
        options.layers += [(*kernel, tokens, rank) for rank in (8, 64, 256)]
    return options


def sides(text: str) -> tuple[int, int]:
    """Return inputs and outputs of `1024x4096`."""
    try:
        inputs, outputs = map(int, text.split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"a kernel is given as 1024x4096. Received: {text!r}"
        ) from error
    return inputs, outputs


if __name__ == "__main__":
    raise SystemExit(main())
