"""Life cycle of our adapter on one backend, for `benchmarks.life_cycle`."""

import tempfile
from pathlib import Path
from typing import Any

import keras_hub  # noqa: F401  (its import must not count as loading a model)
import numpy as np

import keras_randlora as kr
from benchmarks.cases import parse_method
from benchmarks.measures import Measures
from benchmarks.models import MODELS, build_keras
from benchmarks.processes import one_line, serve


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of one backend."""
    measures = Measures()
    rank, targets = settings["rank"], list(settings["targets"])
    with measures.seconds("load the base model"):
        model = build_keras(MODELS[settings["model"]], "float32")
    with measures.seconds("enable the first time"):
        kr.enable_randlora(model, rank=rank, targets=targets)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        for _ in range(settings["repeats"]):
            cycle(model, rank, targets, path, measures)
        measures.add_file("adapter file", path)
    report = kr.summary(model)
    measures.add("adapted layers", len(report.layers))
    measures.add("trained parameters", report.trainable)
    with measures.seconds("merge"):
        kr.merge_randlora(model)
    largest = max(layer.inputs * layer.outputs for layer in report.layers)
    measures.add("largest adapted kernel, MB", 4 * largest / 1e6)
    return measures.rows() + bases(model, settings)


def cycle(
    model: Any, rank: int, targets: list[str], path: Path, measures: Measures
) -> None:
    """Disable, enable, summarize, save and load once."""
    kr.disable_randlora(model)
    with measures.seconds("enable"):
        kr.enable_randlora(model, rank=rank, targets=targets)
    with measures.seconds("summary"):
        kr.summary(model)
    state = kr.get_adapter(model)
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(array.shape) for name, array in state.items()}
    kr.set_adapter(model, {name: 0.01 * v.astype("f4") for name, v in values.items()})
    with measures.seconds("save the adapter"):
        kr.save_adapter(model, path)
    kr.disable_randlora(model)
    with measures.seconds("load the adapter into a plain model"):
        kr.load_adapter(model, path)
    with measures.seconds("load the adapter into an adapted model"):
        kr.load_adapter(model, path)


def bases(model: Any, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the bytes of the bases in each storage, and the seconds to enable it."""
    rows = []
    for storage in settings["storages"]:
        measures, options = Measures(), parse_method(f"randlora-{storage}").options()
        try:
            with measures.seconds(f"enable with {storage} bases"):
                report = kr.enable_randlora(
                    model,
                    rank=settings["rank"],
                    targets=list(settings["targets"]),
                    **options,
                )
        except Exception as error:
            rows.append({"measure": f"{storage} bases", "error": one_line(error)})
            continue
        measures.add(f"{storage} bases, MB", report.basis_bytes / 1e6)
        kr.disable_randlora(model)
        rows += measures.rows()
    return rows


if __name__ == "__main__":
    serve(measure)
