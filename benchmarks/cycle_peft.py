"""Life cycle of PEFT's adapters on the same model, for `benchmarks.life_cycle`.

PEFT's RandLora writes its bases with the adapter unless `save_projection=False`.
"""

import tempfile
from pathlib import Path
from typing import Any

import peft

from benchmarks.cases import Case
from benchmarks.measures import Measures
from benchmarks.methods import adapt_peft
from benchmarks.models import MODELS, build_transformers
from benchmarks.processes import serve


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of PEFT's RandLora, and the size of its LoRA."""
    measures = Measures()
    for method in ("peft-randlora", "peft-lora"):
        case = Case(
            backend="torch",
            method=method,
            model=settings["model"],
            targets=tuple(settings["targets"]),
            rank=settings["rank"],
            lora_rank=settings["lora_rank"],
        )
        with tempfile.TemporaryDirectory() as folder:
            cycle(case, Path(folder) / "adapter", measures)
    return measures.rows()


def cycle(case: Case, folder: Path, measures: Measures) -> None:
    """Adapt, save, load and merge once."""
    name, sizes = case.method, MODELS[case.model]
    base = build_transformers(sizes, "float32")
    with measures.seconds(f"{name}: adapt"):
        model = adapt_peft(base, case)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    measures.add(f"{name}: trained parameters", trained)
    with measures.seconds(f"{name}: save"):
        model.save_pretrained(folder)
    measures.add_file(f"{name}: adapter folder", folder)
    fresh = build_transformers(sizes, "float32")
    with measures.seconds(f"{name}: load into a plain model"):
        peft.PeftModel.from_pretrained(fresh, folder)
    with measures.seconds(f"{name}: merge"):
        model.merge_and_unload()


if __name__ == "__main__":
    serve(measure)
