"""Worker process of `benchmarks.generation`: the methods of one backend."""

import contextlib
import statistics
import time
from typing import Any

import numpy as np

from benchmarks.cases import parse_method
from benchmarks.models import MODELS, build_keras
from benchmarks.processes import serve


class Answering:
    """One method's model, and the time of its answers.

    Until `block` ends, `merged` is merged.

    Attributes:
        first_s: Seconds of the first answer, in which the model is compiled.
        seconds: Those of the later ones.
    """

    def __init__(
        self, method: str, settings: dict[str, Any], block: contextlib.ExitStack
    ) -> None:
        import keras_randlora as kr

        self.model = build_keras(MODELS[settings["model"]], settings["dtype"])
        merged = method == "merged"
        _adapt(self.model, "randlora-kronecker" if merged else method, settings)
        if merged:
            block.enter_context(kr.merged(self.model))
        self.model.compile(sampler="greedy")
        self.prompt = _prompt(settings)
        self.first_s = self.answer()
        self.seconds: list[float] = []

    def answer(self) -> float:
        """Answer the prompt; return the seconds."""
        begun = time.perf_counter()
        answer = self.model.generate(self.prompt, stop_token_ids=None)
        np.asarray(answer["token_ids"])
        return time.perf_counter() - begun


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the seconds of each method, and its ratio to the first one."""
    with contextlib.ExitStack() as block:
        answering = {
            name: Answering(name, settings, block) for name in settings["methods"]
        }
        for _ in range(settings["rounds"]):
            for one in answering.values():
                one.seconds.append(one.answer())
    reference, *_ = answering.values()
    return [
        {
            "method": name,
            "first_s": one.first_s,
            "median_s": statistics.median(one.seconds),
            "ratio": statistics.median(
                mine / its
                for mine, its in zip(one.seconds, reference.seconds, strict=True)
            ),
        }
        for name, one in answering.items()
    ]


def _adapt(model: Any, method: str, settings: dict[str, Any]) -> None:
    """Adapt the model, with an update that is not zero."""
    import keras_randlora as kr
    from examples import methods

    if method == "base":
        return
    if method == "keras-lora":
        methods.adapt(model, f"lora-{settings['lora_rank']}")
    else:
        options = parse_method(method).options()
        kr.enable_randlora(
            model, rank=settings["rank"], targets="all-linear", **options
        )
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(1e-3 * rng.standard_normal(variable.shape))


def _prompt(settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the prompt's token ids, and zeros where the answer will be."""
    given, length = settings["prompt"], settings["prompt"] + settings["tokens"]
    ids = np.zeros((1, length), "int32")
    vocabulary = MODELS[settings["model"]].vocabulary
    ids[:, :given] = np.random.default_rng(0).integers(1, vocabulary, given)
    return {"token_ids": ids, "padding_mask": (ids > 0).astype("int32")}


if __name__ == "__main__":
    serve(measure)
