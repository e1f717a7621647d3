"""Worker process for one precision of `benchmarks.quantized_training`."""

import argparse
import math
import sys
import time
from typing import Any

from benchmarks.models import EXAMPLES
from benchmarks.processes import serve


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Fine-tune SmolLM2; return perplexities, bytes of weights, seconds."""
    import keras

    import keras_randlora as kr
    from keras_randlora.tools.sizes import bytes_of

    sys.path.insert(0, str(EXAMPLES))
    import demo

    mode, block, embedding = settings["quantization"]
    options = argparse.Namespace(
        data=None,
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        sequence_length=settings["length"],
        learning_rate=settings["learning_rate"],
        seed=0,
    )
    keras.utils.set_random_seed(0)
    model, preprocessor = demo.load("smollm2")
    text = demo.prepare_text(options, preprocessor.tokenizer)
    if mode:
        quantize(model, mode, block, embedding)
    row = {"weights_bytes": sum(map(bytes_of, model.weights))}
    row["before"] = perplexity(model, text.held_out)
    rank, basis = settings["rank"], settings["basis"]
    kr.enable_randlora(model, rank=rank, targets="all-linear", basis=basis)
    started = time.perf_counter()
    demo.fit(model, text.training, options)
    row["fit_s"] = time.perf_counter() - started
    row["after"] = perplexity(model, text.held_out)
    with kr.merged(model):
        row["merged_alike"] = perplexity(model, text.held_out)
    started = time.perf_counter()
    kr.merge_randlora(model, dequantize=bool(mode))
    row["merge_s"] = time.perf_counter() - started
    row["merged"] = perplexity(model, text.held_out)
    return [row]


def quantize(model: Any, mode: str, block: int | None, embedding: bool) -> None:
    """Quantize a model, optionally with its embedding."""
    import keras

    config = None
    if mode == "int4":
        config = keras.quantizers.Int4QuantizationConfig(block_size=block)

    def chosen(layer: Any) -> bool:
        return embedding or not isinstance(layer, keras.layers.Embedding)

    model.quantize(mode, config=config, filters=chosen)
    # Keras 3.15 leaves the model locked: no preprocessor could be attached to it.
    model._tracker.unlock()
    model.compile(optimizer=None, weighted_metrics=[], sampler="greedy")


def perplexity(model: Any, held_out: Any) -> float:
    """Return the perplexity on the held-out windows."""
    from text_data import unit_mean

    loss = model.evaluate(
        held_out.inputs,
        held_out.targets,
        sample_weight=unit_mean(held_out.weights),
        batch_size=4,
        verbose=0,
        return_dict=True,
    )["loss"]
    return math.exp(loss)


if __name__ == "__main__":
    serve(measure)
