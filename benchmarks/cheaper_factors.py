"""Time to form an adapted kernel with other Kronecker factors, plain torch, in strips.

    python -m benchmarks.cheaper_factors --sides 512 2048 4096

Today's B has two factors, `left ⊗ right` with a `right` of 64 × 64. Counted are the
multiply-adds of an entry of the kernel, measured is the time of `W + B · S` over that
of Keras LoRA's kernel, `W + A · B` of rank 16.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import command_line, results

STRIP = 2**18
LORA_RANK, BASIS_RANK = 16, 32
# The sizes of the factors, from left to right, for a side of the kernel.
FACTORS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "64 (today)": lambda side: (side // 64, 64),
    "two, equal": lambda side: _equal(side, 2),
    "three, equal": lambda side: _equal(side, 3),
}
HADAMARD = "64 by a fast Hadamard transform"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement of the command line."""
    parser = command_line.parser(__doc__, "cheaper_factors.json")
    parser.add_argument("--sides", nargs="+", type=int, default=[512, 2048, 4096])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    result = results.new("cheaper_factors", command_line.settings(options))
    for side in options.sides:
        rows = measured(side, options.rounds)
        result["cases"].append({"heading": f"torch, {side}×{side}", "rows": rows})
    results.write(result, options.out, "Forming a kernel with other factors")
    return results.show(result, options.out)


def measured(side: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each way to form a kernel of `side × side`."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    kernel, a, b = normal(side, side), normal(side, LORA_RANK), normal(LORA_RANK, side)
    count = side // BASIS_RANK
    diagonals = normal(count, BASIS_RANK, 1), normal(count, 1, side)
    update = normal(BASIS_RANK, side), *diagonals
    ways: dict[str, Callable[[], Any]] = {"Keras LoRA": lambda: kernel + (a @ b) * 2.0}
    counts = {"Keras LoRA": LORA_RANK}
    for name, sizes_of in FACTORS.items():
        sizes = sizes_of(side)
        factors = [normal(size, size) for size in sizes]
        ways[name] = _in_strips(kernel, update, partial(product, factors))
        counts[name] = sum(sizes)
    left = normal(side // 64, side // 64)
    ways[HADAMARD] = _in_strips(
        kernel, update, lambda strip: product([left], hadamard(strip))
    )
    counts[HADAMARD] = side // 64 + int(math.log2(64))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, form in ways.items():
            started = time.perf_counter()
            form()
            times[name].append(time.perf_counter() - started)
    reference = statistics.median(times["Keras LoRA"])
    return [
        {
            "method": name,
            "multiply_adds": counts[name],
            "median_s": statistics.median(values),
            "ratio": statistics.median(values) / reference,
        }
        for name, values in times.items()
    ]


def product(factors: Sequence[torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """Return the product of the leading axis with `factors[0] ⊗ factors[1] ⊗ …`.

    Args:
        factors: Square matrices. Where their sizes do not multiply to the rows of
            `values`, they are `… ⊗ identity`.
        values: `(rows, columns)`.
    """
    shape, before = values.shape, 1
    for factor in factors:
        values = factor @ values.reshape(before, factor.shape[0], -1)
        before *= factor.shape[0]
    return values.reshape(shape)


def hadamard(values: torch.Tensor) -> torch.Tensor:
    """Return `values`, each 64 rows multiplied by the Hadamard matrix, in six sums."""
    shape, width = values.shape, 1
    while width < 64:
        pairs = values.reshape(-1, 2, width, shape[1])
        values = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1)
        width *= 2
    return values.reshape(shape)


def _in_strips(
    kernel: torch.Tensor,
    update: Sequence[torch.Tensor],
    expand: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[], torch.Tensor]:
    """Return a function that forms the kernel as the package does on torch."""
    side = kernel.shape[0]
    width = min(STRIP // side, side)
    basis_a, lambda_, gamma = update

    def form() -> torch.Tensor:
        whole = torch.empty_like(kernel)
        for start in range(0, side, width):
            part = slice(start, start + width)
            stacked = basis_a[:, part] * gamma[..., part] * lambda_
            strip = expand(stacked.reshape(side, -1))
            torch.add(kernel[:, part], strip, out=whole[:, part])
        return whole

    return form


def _equal(side: int, count: int) -> tuple[int, ...]:
    """Return powers of two, as equal as possible, with the product `side`."""
    exponent = int(math.log2(side))
    shares = [exponent // count + (i < exponent % count) for i in range(count)]
    return tuple(2**share for share in shares)


if __name__ == "__main__":
    raise SystemExit(main())
