"""Seconds, bytes and peak memory of `export_merged`, by format.

python -m benchmarks.exports --backends tensorflow --formats onnx litert
"""

import argparse
from collections.abc import Sequence
from typing import Any

import keras_randlora as kr
from benchmarks import command_line, results
from benchmarks.cases import BACKENDS
from benchmarks.models import MODELS
from benchmarks.processes import rows_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the measurement of the command line; return 1 if something failed."""
    options = parse(arguments)
    settings = command_line.settings(options)
    result = results.new("life_cycle", settings)
    for backend in options.backends:
        heading = f"Exports of {options.model} on {backend}"
        rows: list[dict[str, Any]] = []
        result["cases"].append({"heading": heading, "backend": backend, "rows": rows})
        for format in options.formats:
            print(f"{heading}: {format} …", flush=True)
            one = {**settings, "format": format}
            rows += rows_of("benchmarks.export_worker", one, backend, options.threads)
            results.write(result, options.out, "Exports")
    return results.show(result, options.out)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = command_line.parser(__doc__, "exports.json")
    add = parser.add_argument
    add("--model", choices=MODELS, default="smollm2")
    add("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    formats = list(kr.export.FORMATS)
    add("--formats", nargs="+", choices=formats, default=formats)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
