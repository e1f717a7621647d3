"""Plots of the results, one for each kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import bases, grown, spread

Result = dict[str, Any]


def step_time(result: Result, path: Path, title: str) -> None:
    """Plot a bar for each method: its time ÷ Keras LoRA's."""
    cases = [
        (case["heading"], ratios)
        for case in result["cases"]
        if (ratios := _ratios(case["rows"]))
    ]
    figure, axes = _panels(
        len(cases), 1 + 0.28 * max([len(r) for _, r in cases] or [1])
    )
    for axis, (heading, ratios) in zip(axes, cases, strict=True):
        bars = axis.barh(list(ratios), list(ratios.values()))
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.margins(x=0.15)
        axis.invert_yaxis()
        axis.set_title(heading, fontsize=9)
    _save(figure, path, title)


def single_layer(result: Result, path: Path, title: str) -> None:
    """Plot the time ÷ Keras LoRA's against the layers, one panel per backend."""
    figure, axes = _panels(len(result["cases"]), 4.5)
    for axis, case in zip(axes, result["cases"], strict=True):
        rows = [row for row in case["rows"] if "error" not in row]
        sizes = [(r["inputs"], r["outputs"], r["tokens"], r["rank"]) for r in rows]
        labels = ["{}×{}\n{} tokens\nrank {}".format(*size) for size in sizes]
        for method in dict.fromkeys(m for row in rows for m in row["ratios"]):
            style = "--" if method.endswith("factored") else "-"
            values = [row["ratios"].get(method) for row in rows]
            axis.plot(range(len(rows)), values, style, marker="o", label=method)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xticks(range(len(rows)), labels, fontsize=6)
        axis.set_title(case["heading"], fontsize=9)
        if rows:
            axis.legend(fontsize=7)
    _save(figure, path, title)


def life_cycle(result: Result, path: Path, title: str) -> None:
    """Plot the measures in seconds as bars, one panel per backend."""
    cases = [
        (case["heading"], rows)
        for case in result["cases"]
        if (rows := [r for r in case["rows"] if r.get("measure", "").endswith(", s")])
    ]
    figure, axes = _panels(len(cases), 2.5)
    for axis, (heading, rows) in zip(axes, cases, strict=True):
        bars = axis.barh([r["measure"] for r in rows], [r["value"] for r in rows])
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.margins(x=0.15)
        axis.invert_yaxis()
        axis.set_title(heading, fontsize=9)
    _save(figure, path, title)


def basis_quality(result: Result, path: Path, title: str) -> None:
    """Plot the mean held-out loss of each basis, with its deviation over the seeds."""
    figure, axes = _panels(len(result["cases"]), 1.6)
    for axis, case in zip(axes, result["cases"], strict=True):
        for place, basis in enumerate(bases(case["rows"])):
            mean, deviation = spread(case["rows"], basis, "after", "loss")
            axis.errorbar(mean, place, xerr=deviation, marker="o", capsize=4)
        axis.set_yticks(range(len(bases(case["rows"]))), bases(case["rows"]))
        axis.margins(y=0.5)
        axis.invert_yaxis()
        axis.set_title(case["heading"], fontsize=9)
    _save(figure, path, title)


def profile(result: Result, path: Path, title: str) -> None:
    """Plot a bar for each method, divided into its operations."""
    figure, axes = _panels(len(result["cases"]), 3.5)
    for axis, case in zip(axes, result["cases"], strict=True):
        parts = case["rows"][:-1]
        methods = list(parts[0]["ms"])
        start = [0.0] * len(methods)
        for part in parts:
            widths = list(part["ms"].values())
            axis.barh(methods, widths, left=start, label=part["operation"])
            start = [a + b for a, b in zip(start, widths, strict=True)]
        axis.invert_yaxis()
        axis.set_title(case["heading"], fontsize=9)
        axis.legend(fontsize=6, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    _save(figure, path, title)


def long_sequences(result: Result, path: Path, title: str) -> None:
    """Plot the growth of memory against the length, one line per method."""
    figure, axes = _panels(len(result["cases"]), 4)
    for axis, case in zip(axes, result["cases"], strict=True):
        rows = [row for row in case["rows"] if "error" not in row]
        for way in dict.fromkeys(row["way"] for row in rows):
            points = [(r["length"], grown(r) / 1e9) for r in rows if r["way"] == way]
            axis.plot(*zip(*points, strict=True), marker="o", label=way)
        axis.set_xlabel("tokens per sequence", fontsize=8)
        axis.set_ylabel("memory growth in a step, GB", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.set_title(case["heading"], fontsize=9)
        axis.legend(fontsize=7)
    _save(figure, path, title)


def quantized_training(result: Result, path: Path, title: str) -> None:
    """Plot the perplexity before and after, a pair of bars for each precision."""
    figure, axes = _panels(len(result["cases"]), 3)
    for axis, case in zip(axes, result["cases"], strict=True):
        rows = [row for row in case["rows"] if "error" not in row]
        for shift, when in ((-0.2, "before"), (0.2, "after")):
            places = [place + shift for place in range(len(rows))]
            values = [row[when] for row in rows]
            bars = axis.barh(places, values, height=0.38, label=when)
            axis.bar_label(bars, fmt="%.1f", padding=3)
        axis.set_yticks(range(len(rows)), [row["method"] for row in rows])
        axis.margins(x=0.15)
        axis.invert_yaxis()
        axis.set_title(case["heading"], fontsize=9)
        axis.legend(fontsize=7)
    _save(figure, path, title)


PLOTS: dict[str, Callable[[Result, Path, str], None]] = {
    "step_time": step_time,
    "single_layer": single_layer,
    "life_cycle": life_cycle,
    "basis_quality": basis_quality,
    "profile": profile,
    "long_sequences": long_sequences,
    "quantized_training": quantized_training,
}


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return each method's ratio to Keras LoRA, if there is one."""
    found = {row["method"]: row.get("ratios", {}).get("keras-lora") for row in rows}
    return {method: ratio for method, ratio in found.items() if ratio is not None}


def _panels(count: int, height: float) -> tuple[Any, list[Any]]:
    """Return a figure with `count` panels below each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, max(1, count) * height), layout="constrained")
    return figure, [figure.add_subplot(count, 1, i + 1) for i in range(count)]


def _save(figure: Any, path: Path, title: str) -> None:
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
