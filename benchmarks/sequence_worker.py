"""Worker process for one method and length of `benchmarks.long_sequences`."""

import statistics
import time
from typing import Any

from benchmarks.cases import Case
from benchmarks.memory import HostMemory
from benchmarks.models import MODELS, build_keras
from benchmarks.processes import serve
from benchmarks.session import LEARNING_RATE, batch, next_token_loss


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the peak of memory over some steps, and the predicted peak."""
    import keras
    import numpy as np

    import keras_randlora as kr

    sizes, passes = MODELS[settings["model"]], settings["passes"]
    model = build_keras(sizes, "float32")
    if settings["remat"]:
        kr.rematerialize(model)
    adapter = dict(rank=settings["rank"], targets=list(settings["targets"]))
    one_pass = dict(batch=settings["batch"] // passes, sequence=settings["length"])
    planned = kr.plan(model, remat=settings["remat"], **adapter, **one_pass)
    kr.enable_randlora(model, **adapter)
    optimizer = keras.optimizers.AdamW(
        LEARNING_RATE, gradient_accumulation_steps=passes if passes > 1 else None
    )
    model.compile(optimizer=optimizer, loss=next_token_loss, weighted_metrics=[])
    shape = {name: settings[name] for name in ("model", "batch", "length")}
    case = Case("", "", **shape)
    parts = [np.array_split(array, passes) for array in batch(case)]

    def step() -> float:
        for ids, labels in zip(*parts, strict=True):
            inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
            loss = model.train_on_batch(inputs, labels)
        return float(loss)

    memory = HostMemory()
    before = memory.settle()
    loss, seconds = step(), []
    memory.settle()
    for _ in range(settings["steps"]):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return [
        {
            "before_bytes": before,
            "peak_bytes": memory.peak(),
            "planned_bytes": planned.step,
            "median_s": statistics.median(seconds),
            "first_loss": loss,
        }
    ]


if __name__ == "__main__":
    serve(measure)
