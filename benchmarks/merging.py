"""Memory of `merge_randlora` on kernels that are sharded over several devices.

    python -m benchmarks.merging

A `ModelParallel` distribution on JAX shards every kernel over simulated CPU devices of
one process. The figure is the rise of the process's peak, of all devices together, in
kernels: merging in place needs no more than one.
"""

import os
from collections.abc import Sequence

from benchmarks import command_line, results
from benchmarks.processes import rows_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement of the command line; return 1 if something failed."""
    parser = command_line.parser(__doc__, "merging.json")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--bases", nargs="+", default=["uniform", "kronecker"])
    options = parser.parse_args(arguments)
    settings = command_line.settings(options)
    flag = f"--xla_force_host_platform_device_count={options.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    result = results.new("merging", settings)
    for basis in options.bases:
        heading = f"{basis}, {options.layers} kernels {options.width}×{options.width}"
        rows = rows_of(
            "benchmarks.merging_worker",
            {**settings, "basis": basis},
            "jax",
            options.threads,
        )
        result["cases"].append({"heading": heading, "rows": rows})
        results.write(result, options.out, heading)
    return results.show(result, options.out)


if __name__ == "__main__":
    raise SystemExit(main())
