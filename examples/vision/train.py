"""Pretraining and fine-tuning of an image classifier, in a few functions."""

import contextlib
import math
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from examples import methods
from examples.classification import accuracy_and_loss, order
from examples.command_line import user_choices
from examples.reference_layers import ADAPTERS
from examples.vision import data
from examples.vision.comparison import Run
from examples.vision.model import HEAD, converted, load, logits


def fit(
    model: keras.Model,
    converter: keras.layers.Layer,
    pictures: data.Images,
    *,
    learning_rate: float,
    steps: int,
    batch_size: int,
    seed: int,
) -> float:
    """Train with AdamW, with the learning rates of `rate_at`.

    Returns:
        The mean loss over the last quarter of the steps.
    """
    model.compile(
        keras.optimizers.AdamW(learning_rate, weight_decay=0.0, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    rows = order(len(pictures.labels), steps * batch_size, seed)
    for step, chosen in enumerate(rows.reshape(steps, batch_size)):
        if step == steps - steps // 4:
            model.reset_metrics()
        # A variable of the optimizer: all learning rates share one compiled program.
        model.optimizer.learning_rate = learning_rate * rate_at(step, steps)
        pixels, labels = pictures.take(chosen)
        inputs = converted(converter, pixels)
        logs = model.train_on_batch(inputs, labels, return_dict=True)
    return float(logs["loss"])


def rate_at(step: int, steps: int) -> float:
    """Return a step's share of the peak learning rate: warm-up of 10 %, then cosine."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def adapt(model: keras.Model, method: str, seed: int) -> int:
    """Prepare the model for a method; return its number of trainable parameters.

    Raises:
        UserError: There is no such method, or the model does not take it.
    """
    with user_choices():
        return methods.adapt(
            model,
            method,
            exclude=[HEAD],
            also_train=[HEAD],
            seed=seed,
            others=ADAPTERS,
        )


def tuned(
    plan: Run, train: data.Images, classes: int
) -> tuple[keras.Model, keras.layers.Layer, dict[str, Any]]:
    """Return a model trained as planned, its converter, and the measurements."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(plan.seed)
    model, converter = load(plan.preset, classes)
    weights = model.count_params()
    trained = adapt(model, plan.method, plan.seed)
    loss = fit(
        model,
        converter,
        train,
        learning_rate=plan.learning_rate,
        steps=plan.steps,
        batch_size=plan.batch_size,
        seed=plan.seed,
    )
    found = {"trained": trained, "share": trained / weights, "train_loss": loss}
    return model, converter, found


def run(plan: Run, parts: data.Parts, classes: int) -> dict[str, Any]:
    """Train as planned, evaluate on the plan's set, and return the measurements."""
    judged = getattr(parts, plan.part)
    model, converter, found = tuned(plan, parts.train, classes)
    outputs = logits(model, converter, judged.pixels, 2 * plan.batch_size)
    accuracy, loss = accuracy_and_loss(outputs, judged.labels)
    return {"accuracy": accuracy, "loss": loss, **found}


def pretrain(
    model: keras.Model,
    converter: keras.layers.Layer,
    train: data.Images,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
) -> None:
    """Train a new classifier on randomly shifted images."""
    rounds = -(-steps * batch_size // len(train.labels))
    moved = [data.shifted(train, seed) for seed in range(rounds)]
    pictures = data.Images(*map(np.concatenate, zip(*moved, strict=True)))
    fit(
        model,
        converter,
        pictures,
        learning_rate=learning_rate,
        steps=steps,
        batch_size=batch_size,
        seed=0,
    )


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Let JAX compile once for all runs of a method; no effect on other backends."""
    if keras.backend.backend() != "jax":
        yield
        return
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    least = jax.config.jax_persistent_cache_min_compile_time_secs
    with tempfile.TemporaryDirectory(prefix="vision-") as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        try:
            yield
        finally:
            jax.config.update("jax_compilation_cache_dir", None)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
            compilation_cache.reset_cache()
