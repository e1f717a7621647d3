"""Markdown tables of results: `python -m benchmarks.report RESULT.json ...`."""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def tables(result: dict[str, Any]) -> str:
    """Return the machine and the tables of a result."""
    parts = [_origin(result["machine"])]
    for case in result["cases"]:
        good = [row for row in case["rows"] if "error" not in row]
        body = TABLES[result["kind"]](good) if good else "Nothing could be measured."
        failed = "\n".join(
            f"- `{row.get('method', row.get('measure'))}` failed: {row['error']}"
            for row in case["rows"]
            if "error" in row
        )
        parts += [f"**{case['heading']}**", body, *([failed] if failed else [])]
    return "\n\n".join(parts)


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; the first column is aligned left, the others right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        [
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    rule = ["-" * w if not i else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(
        f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:])
    )


def number(value: float | None, digits: int = 2) -> str:
    """Format a number with `digits` decimals; a dash for `None`."""
    return "–" if value is None else f"{value:,.{digits}f}"


def step_time(rows: list[Row]) -> str:
    """Return times, ratios, operations and memory of the methods of one race."""
    lora = next((row for row in rows if row["method"] == "keras-lora"), None)
    peft = any(row["method"] == "peft-lora" for row in rows)
    head = ["method", "s per step", "÷ Keras LoRA", *["÷ PEFT LoRA"] * peft]
    head += ["GFLOP", "÷ Keras LoRA", "GFLOP/s", "GB moved", "÷ Keras LoRA"]
    head += ["peak grown, MB", "÷ Keras LoRA", "peak, MB", "÷ Keras LoRA"]
    head += ["trainable", "first step, s", "÷ Keras LoRA", "first loss"]
    return markdown(head, [_step_row(row, lora, peft) for row in rows])


def _step_row(row: Row, lora: Row | None, peft: bool) -> list[str]:
    beside = partial(_beside, row, lora)
    columns = [row["method"], number(row["median_s"], 3)]
    columns += [number(row["ratios"].get("keras-lora"))]
    columns += [number(row["ratios"].get("peft-lora"))] * peft
    columns += beside(operations, 1e9, 1)
    columns += [number(operations(row) / 1e9 / row["median_s"], 1)]
    columns += beside(traffic, 1e9, 1)
    columns += beside(grown, 1e6, 0)
    columns += beside(lambda row: row["peak_bytes"], 1e6, 0)
    columns += [number(row["trainable"], 0)]
    columns += beside(lambda row: row["first_step_s"], 1, 1)
    return [*columns, number(row["first_loss"], 3)]


def _beside(
    row: Row,
    reference: Row | None,
    measure: Callable[[Row], float | None],
    unit: float,
    digits: int,
) -> list[str]:
    """Return a measure and its ratio to the reference's, dashes for what is unknown."""
    value = measure(row)
    if value is None:
        return [number(None)] * 2
    return [
        number(value / unit, digits),
        _ratio(value, reference and measure(reference)),
    ]


def traffic(row: Row) -> int | None:
    """Return the bytes that a step moves, counted on torch alone."""
    return row.get("traffic_bytes")


def operations(row: Row) -> int:
    """Return the counted operations of a step."""
    return sum(row["operations"].values())


def grown(row: Row) -> int:
    """Return the growth of memory from before the first step to the peak."""
    return row["peak_bytes"] - row["before_bytes"]


def single_layer(rows: list[Row]) -> str:
    """Return each method's time ÷ Keras LoRA's, one row per layer.

    Operations and, where they are counted, bytes ÷ Keras LoRA's are in brackets.
    """
    methods = list(dict.fromkeys(m for row in rows for m in row["ratios"]))
    names = [method.removeprefix("randlora-") for method in methods]
    head = ["layer, tokens, rank", "Keras LoRA, ms", *names, "auto"]
    lines = []
    for row in rows:
        times = row["median_s"]
        ratios = [_ratios_of_layer(row, method) for method in methods]
        label = f"{row['inputs']}×{row['outputs']}, {row['tokens']}, {row['rank']}"
        verdict = "; ".join(auto_verdict(row))
        lines.append([label, number(1e3 * times["keras-lora"], 1), *ratios, verdict])
    return markdown(head, lines)


def _ratios_of_layer(row: Row, method: str) -> str:
    if method not in row["ratios"]:
        return number(None)
    counted = [
        number(of[method] / of["keras-lora"])
        for of in (row["operations"], row.get("traffic_bytes", {}))
        if of.get("keras-lora")
    ]
    return f"{number(row['ratios'][method])} ({', '.join(counted)})"


def auto_verdict(row: Row) -> list[str]:
    """Return for each basis the choice of `auto`, and its loss of time."""
    verdicts = []
    for basis, picked in row["auto"].items():
        seconds = {
            way: row["median_s"].get(f"randlora-{basis}-{way}")
            for way in ("materialized", "factored")
        }
        if None in seconds.values():
            continue
        loss = seconds[picked] / min(seconds.values()) - 1
        verdicts.append(f"{basis} {picked}" + (f" (+{loss:.0%})" if loss else ""))
    return verdicts


def life_cycle(rows: list[Row]) -> str:
    """Return one row per measure."""
    lines = [[row["measure"], number(row["value"], row["digits"])] for row in rows]
    return markdown(["", "measured"], lines)


def basis_quality(rows: list[Row]) -> str:
    """Return one row per basis: mean ± standard deviation over the seeds."""
    head = ["basis", "held-out loss before", "after", "held-out accuracy before"]
    head += ["after"]
    return markdown(head, [_basis_row(basis, rows) for basis in bases(rows)])


def _basis_row(basis: str, rows: list[Row]) -> list[str]:
    cells = []
    for measure in ("loss", "accuracy"):
        for when in ("before", "after"):
            mean, deviation = spread(rows, basis, when, measure)
            cells.append(f"{mean:.3f} ± {deviation:.3f}")
    return [basis, *cells]


def bases(rows: list[Row]) -> list[str]:
    """Return the compared bases, in order."""
    return list(dict.fromkeys(row["basis"] for row in rows))


def spread(rows: list[Row], basis: str, when: str, measure: str) -> tuple[float, float]:
    """Return mean and standard deviation of a basis over its seeds."""
    values = [row[when][measure] for row in rows if row["basis"] == basis]
    return statistics.mean(values), statistics.stdev(values) if values[1:] else 0.0


def profile(rows: list[Row]) -> str:
    """Return the milliseconds of each operation, one column per method."""
    head = ["operation", *rows[0]["ms"]]
    return markdown(
        head, [[row["operation"], *map(number, row["ms"].values())] for row in rows]
    )


def long_sequences(rows: list[Row]) -> str:
    """Return peak, predicted peak and time of each method, one row per length."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    measures = {
        "MB": lambda row: number(grown(row) / 1e6, 0),
        "predicted, MB": lambda row: number(row["planned_bytes"] / 1e6, 0),
        "s": lambda row: number(row["median_s"], 1),
    }
    lines = []
    for length in dict.fromkeys(row["length"] for row in rows):
        found = {row["way"]: row for row in rows if row["length"] == length}
        lines.append(
            [
                str(length),
                *(
                    read(found[way]) if way in found else "–"
                    for read in measures.values()
                    for way in ways
                ),
            ]
        )
    heads = [f"{way}, {measure}" for measure in measures for way in ways]
    return markdown(["tokens per sequence", *heads], lines)


def quantized_training(rows: list[Row]) -> str:
    """Return the perplexities, one row per precision."""
    floats = next((row for row in rows if row["method"] == "float32"), None)
    head = ["kernels", "weights, MB", "perplexity before", "after", "÷ float32's"]
    head += ["merged, floating point", "merged, quantized again", "fit, s", "merge, s"]
    lines = []
    for row in rows:
        perplexities = [number(row[when]) for when in ("before", "after")]
        ratio = number(row["after"] / floats["after"], 3) if floats else "–"
        merged = [number(row["merged"]), number(row["merged_alike"])]
        seconds = [number(row["fit_s"], 0), number(row["merge_s"], 1)]
        size = number(row["weights_bytes"] / 1e6, 0)
        lines.append([row["method"], size, *perplexities, ratio, *merged, *seconds])
    return markdown(head, lines)


def every_weight(rows: list[Row]) -> str:
    """Return times and memory of each method, and their ratios to the first."""
    head = [
        "method",
        "s per step",
        "÷",
        "peak grown, MB",
        "÷",
        "peak, MB",
        "÷",
        "trainable",
    ]
    table = []
    for row in rows:
        cells = [row["method"]]
        for name, unit, digits in (
            ("median_s", 1, 3),
            ("grown_bytes", 1e6, 0),
            ("peak_bytes", 1e6, 0),
        ):
            cells += [number(row[name] / unit, digits), number(row[f"{name}_ratio"])]
        table.append([*cells, number(row["trainable"], 0)])
    return markdown(head, table)


def generation(rows: list[Row]) -> str:
    """Return the seconds of an answer, and their ratio to the first method's."""
    head = ["method", "s per answer", f"÷ {rows[0]['method']}", "first answer, s"]
    lines = [
        [row["method"], number(row["median_s"]), number(row["ratio"])]
        + [number(row["first_s"], 1)]
        for row in rows
    ]
    return markdown(head, lines)


def cheaper_factors(rows: list[Row]) -> str:
    """Return the multiply-adds and the time of each way to form a kernel."""
    head = ["factors", "multiply-adds an entry", "ms", f"÷ {rows[0]['method']}"]
    lines = [
        [row["method"], number(row["multiply_adds"], 0), number(1e3 * row["median_s"])]
        + [number(row["ratio"])]
        for row in rows
    ]
    return markdown(head, lines)


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "step_time": step_time,
    "single_layer": single_layer,
    "life_cycle": life_cycle,
    "basis_quality": basis_quality,
    "profile": profile,
    "long_sequences": long_sequences,
    "quantized_training": quantized_training,
    "every_weight": every_weight,
    "generation": generation,
    "cheaper_factors": cheaper_factors,
    "merging": life_cycle,
}


def _ratio(value: float, reference: float | None) -> str:
    return number(value / reference if reference else None)


def _origin(machine: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["versions"].items() if version
    )
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB"
        f"{gpu}; commit {machine['commit']}, Python {machine['python']}, {versions}."
    )


def main() -> None:
    """Print the tables of the named files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path)
    for path in parser.parse_args().results:
        print(tables(json.loads(path.read_text())), end="\n\n")


if __name__ == "__main__":
    main()
