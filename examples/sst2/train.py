"""One run: MiniLM with a new head, adapted, trained and evaluated."""

import math
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

import keras_randlora as kr
from examples import methods
from examples.classification import accuracy_and_loss, order
from examples.command_line import user_choices
from examples.pretrained import resolve
from examples.reference_layers import ADAPTERS
from examples.sst2 import data
from examples.sst2.experiments import Run
from keras_randlora.adapt import Site, sites
from keras_randlora.layers import RandLoRALayer

# Fully trained by every method: the new layer, and the pooler before it, which
# all-MiniLM-L6-v2 was trained without.
HEAD = ("pooled_dense", "logits")


def load_model() -> keras.Model:
    """Return MiniLM as a classifier of two classes, without dropout."""
    import keras_hub

    backbone = keras_hub.models.Backbone.from_preset(resolve("minilm"), dropout=0.0)
    return keras_hub.models.BertTextClassifier(backbone, num_classes=2, dropout=0.0)


def fresh_model(seed: int) -> keras.Model:
    """Return the model of a seed, the same each time."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    return load_model()


def adapt(model: keras.Model, method: str, seed: int) -> int:
    """Prepare the model for a method; return its number of trainable parameters.

    Raises:
        UserError: There is no such method, or the model does not take it.
    """
    with user_choices():
        return methods.adapt(
            model, method, exclude=HEAD, also_train=HEAD, seed=seed, others=ADAPTERS
        )


def fit(
    model: keras.Model,
    examples: data.Examples,
    *,
    learning_rate: float,
    steps: int,
    batch_size: int,
    seed: int,
) -> dict[str, float]:
    """Train with AdamW: a linear warm-up over a tenth of the steps, then a cosine.

    Returns:
        `train_loss`, the mean over the last quarter of the steps, and `step_seconds`,
        the seconds per step there.
    """
    warmup = max(1, steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=learning_rate, warmup_steps=warmup
    )
    model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=0.0, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    last = max(1, steps // 4)
    rows = order(len(examples.labels), steps * batch_size, seed)
    early, late = np.split(rows, [(steps - last) * batch_size])
    if len(early):
        _pass(model, examples.take(early), batch_size)
    started = time.perf_counter()
    loss = _pass(model, examples.take(late), batch_size)
    seconds = time.perf_counter() - started
    return {"train_loss": loss, "step_seconds": round(seconds / last, 4)}


def evaluate(
    model: keras.Model, examples: data.Examples, batch_size: int
) -> tuple[float, float]:
    """Return accuracy and mean negative log-likelihood."""
    count = len(examples.labels)
    whole = -(-count // batch_size) * batch_size  # one shape for all batches
    filled = examples.take(np.arange(whole) % count)
    logits = model.predict(filled.inputs, batch_size=batch_size, verbose=0)
    return accuracy_and_loss(logits[:count], examples.labels)


def run(plan: Run, folder: Path) -> dict[str, Any]:
    """Train as planned and return the measurements."""
    corpus = data.load(folder, plan.sequence_length)
    judged, held_out = "dev", corpus.dev
    train = corpus.train
    if plan.experiment == "learning-rates":
        train, held_out = data.hold_out(train)
        judged = "validation"
    train = data.within_budget(train, plan.budget, plan.seed)
    try:
        model = fresh_model(plan.seed)
        probe = first_feedforward(model)
        before = current_kernel(probe.layer)
        trained = adapt(model, plan.method, plan.seed)
        found = fit(
            model,
            train,
            learning_rate=plan.learning_rate,
            steps=plan.steps,
            batch_size=plan.batch_size,
            seed=plan.seed,
        )
        accuracy, loss = evaluate(model, held_out, 2 * plan.batch_size)
        added = current_kernel(probe.layer) - before
    finally:
        forget_compiled()
    return {
        f"{judged}_accuracy": accuracy,
        f"{judged}_loss": loss,
        **found,
        "trained": trained,
        "beside_head": trained - head_size(model),
        "update_rank": kr.analysis.update_rank(added) if added.any() else 0,
        "examples": len(train.labels),
    }


def head_size(model: keras.Model) -> int:
    """Return the number of parameters of `HEAD`."""
    layers = [site.layer for site in sites(model) if site.name in HEAD]
    return sum(math.prod(w.shape) for layer in layers for w in layer.weights)


def first_feedforward(model: keras.Model) -> Site:
    """Return the site whose update is analysed: a `Dense` in the first block."""
    return next(s for s in sites(model) if "feedforward" in s.name and s.linear)


def current_kernel(layer: keras.layers.Layer) -> np.ndarray:
    """Return the kernel of a layer, including the update of any adapter."""
    merged = isinstance(layer, RandLoRALayer)
    kernel = layer.merged_kernel() if merged else layer.kernel
    return np.array(ops.convert_to_numpy(kernel), "float32")


def forget_compiled() -> None:
    """Free the programs that JAX keeps for finished models."""
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()


def _pass(model: keras.Model, examples: data.Examples, batch_size: int) -> float:
    """Train on full batches in order and return the mean loss."""
    history = model.fit(
        examples.inputs,
        examples.labels,
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
    )
    return float(history.history["loss"][-1])
