"""A 4-bit SmolLM2-135M learns, and makes good a part of what four bits cost it."""

import argparse
import gc
import math

import demo
import keras
import pytest

import keras_randlora as kr

pytestmark = [
    # Keras's `Model.quantize` warns of every layer that it passes by.
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
OPTIONS = argparse.Namespace(
    data=None,
    steps=30,
    batch_size=4,
    sequence_length=128,
    learning_rate=1e-3,
    seed=0,
)
# Held-out perplexity over that of the model in floating point: 1.27 was measured, after
# 1.55 before training.
MARGIN = 1.35


def fine_tuned(mode, **merging):
    """Fine-tune SmolLM2 and return its perplexities and bytes of weights."""
    keras.utils.set_random_seed(0)
    model, preprocessor = demo.load("smollm2")
    text = demo.prepare_text(OPTIONS, preprocessor.tokenizer)
    if mode:
        model.quantize(mode)
        # Keras 3.15 leaves the model locked: no preprocessor could be attached to it.
        model._tracker.unlock()
        model.compile(optimizer=None, weighted_metrics=[], sampler="greedy")
    measured = {"bytes": weight_bytes(model)}
    measured["before"] = perplexity(model, text)
    kr.enable_randlora(model, rank=32, targets="all-linear", basis="kronecker")
    demo.fit(model, text.training, OPTIONS)
    measured["after"] = perplexity(model, text)
    sample = demo.generate(model, preprocessor, text.prompt)
    assert len(sample) > len(text.prompt)
    kr.merge_randlora(model, **merging)
    measured["merged"] = perplexity(model, text)
    return measured


def perplexity(model, text):
    """Return the perplexity on the held-out text."""
    loss = model.evaluate(
        text.held_out.inputs,
        text.held_out.targets,
        sample_weight=demo.unit_mean(text.held_out.weights),
        batch_size=4,
        verbose=0,
    )
    return math.exp(loss[0] if isinstance(loss, list) else loss)


def weight_bytes(model):
    """Return the bytes of all weights."""
    sizes = {"float32": 4, "int8": 1}
    return sum(math.prod(v.shape) * sizes[v.dtype] for v in model.weights)


def test_int4_comes_near_the_perplexity_of_float():
    in_float = fine_tuned(None)
    gc.collect()
    quantized = fine_tuned("int4", dequantize=True)
    print(f"\nfloat32 {in_float}\nint4    {quantized}")
    assert quantized["bytes"] < 0.2 * in_float["bytes"]
    assert quantized["before"] > in_float["before"]
    assert quantized["after"] < MARGIN * in_float["after"]
    assert abs(quantized["merged"] / quantized["after"] - 1) < 1e-3
