"""One run of the comparison: load, adapt, train, answer the questions."""

import argparse
import gc
from typing import Any

import keras
from command_line import UserError, user_choices
from demo import fit, load

from benchmarks.models import NAMES
from examples import methods
from examples.commonsense.answering import (
    accuracy_of_likelihoods,
    accuracy_of_texts,
    judge,
    learning_rows,
    loss_a_token,
    write,
)
from examples.commonsense.questions import Question
from examples.reference_layers import ADAPTERS
from keras_randlora.adapt import sites

BASE = "none"  # the model as it is
PAPER = "paper"
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")


def run(
    method: str,
    seed: int,
    learning_rate: float | None,
    training: list[Question],
    test: dict[str, list[Question]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Train a model and return its loss and accuracy.

    Returns:
        `trained`; `held_out_loss`, nats a token; the fraction of right answers as
        `TASK/likelihood` and, where asked for, `TASK/generated`, with `mean/…` of all
        tasks.
    """
    gc.collect()  # the former run's model
    keras.utils.set_random_seed(seed)
    model, preprocessor = load(options.preset)
    tokenizer = preprocessor.tokenizer
    trained = 0
    if method != BASE:
        with user_choices():
            targets = named_targets(model, options.targets)
            trained = methods.adapt(
                model, method, targets=targets, seed=seed, others=ADAPTERS
            )
        settings = argparse.Namespace(
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
        fit(model, learning_rows(training, tokenizer, options.cutoff), settings)
    return {"trained": trained, **answered(model, tokenizer, test, options)}


def answered(
    model: Any,
    tokenizer: Any,
    test: dict[str, list[Question]],
    options: argparse.Namespace,
) -> dict[str, float]:
    """Return a model's accuracy on all tasks; see `run`."""
    sizes = (tokenizer, options.cutoff, options.batch_size)
    everything = [question for questions in test.values() for question in questions]
    judgements = judge(model, everything, *sizes)
    written = {task: qs[: options.generate_examples] for task, qs in test.items()}
    asked = [question for questions in written.values() for question in questions]
    texts = write(model, asked, *sizes) if asked else []
    found = {"held_out_loss": loss_a_token(judgements)}
    for task, questions in test.items():
        own, judgements = judgements[: len(questions)], judgements[len(questions) :]
        found[f"{task}/likelihood"] = accuracy_of_likelihoods(questions, own)
        questions = written[task]
        own, texts = texts[: len(questions)], texts[len(questions) :]
        if questions:
            found[f"{task}/generated"] = accuracy_of_texts(questions, own)
    for way in ("likelihood", "generated"):
        rates = [value for name, value in found.items() if name.endswith(f"/{way}")]
        if rates:
            found[f"mean/{way}"] = sum(rates) / len(rates)
    return found


def named_targets(model: Any, targets: list[str]) -> list[str]:
    """Return the targets; `paper` becomes this model's names of the paper's layers.

    These are the query, key, value, up and down projections.
    """
    if targets != [PAPER]:
        return targets
    present = {site.name for site in sites(model)}
    for names in NAMES.values():
        wanted = [ours for ours, theirs in names.items() if theirs in _PROJECTIONS]
        if present.issuperset(wanted):
            return wanted
    raise UserError(
        f"--targets {PAPER} knows the layers of {', '.join(NAMES)}: name those of a "
        f"{type(model).__name__} yourself."
    )
