"""Answers of a language model: the most likely one, and the generated one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from command_line import UserError
from keras import ops
from text_data import Document, Tokenizer, Windows, encode, rows

from examples.commonsense.questions import Question, answer_in

NEW_TOKENS = 32

Pair = tuple[list[int], list[int]]


class Judgement(NamedTuple):
    """A model's likelihoods for one question.

    Attributes:
        log_likelihoods: Of each answer after the words that all answers share, `(n,)`.
        loss: Negative log-likelihood of the right sentence with its end, in nats.
        tokens: Tokens of that sentence.
    """

    log_likelihoods: np.ndarray
    loss: float
    tokens: int


class Reading(NamedTuple):
    """The rows that answer one question.

    Where the sentences differ in their last token only, one row is enough: the right
    sentence, whose last token comes after what is read. Else each has a row.

    Attributes:
        pairs: Prompt and sentence of each row, with its end.
        sizes: Tokens of each row's sentence without its end.
        shared: Leading tokens that all sentences have in common.
        last: Last token of each sentence, where one row is enough.
    """

    pairs: list[Pair]
    sizes: list[int]
    shared: int
    last: list[int]


def judge(
    model: Any,
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    length: int,
    batch_size: int,
) -> list[Judgement]:
    """Return a model's likelihoods for each question.

    Args:
        model: A causal language model without a preprocessor.
        questions: The questions.
        tokenizer: A keras-hub tokenizer.
        length: Tokens of a row; a longer prompt is cut at its beginning.
        batch_size: Rows per batch; all batches have one shape.
    """
    readings = [reading(question, tokenizer, length) for question in questions]
    most = max(len(question.answers) for question in questions)
    pairs = [pair for found in readings for pair in found.pairs]
    ends = [
        (len(pair[0]) + found.shared - 1, found.last)
        for found in readings
        for pair in found.pairs
    ]
    windows = rows(pairs, length, tokenizer)
    places = np.array([[place] for place, _ in ends], "int32")
    last = np.array([(ids + [0] * most)[:most] for _, ids in ends], "int32")
    targets, answers = read(model, windows, places, last, batch_size)
    judgements, row = [], 0
    for question, found in zip(questions, readings, strict=True):
        own = slice(row, row + len(found.pairs))
        judgements.append(
            _judgement(
                question, found, targets[own], answers[own], windows.weights[own]
            )
        )
        row += len(found.pairs)
    return judgements


def reading(question: Question, tokenizer: Tokenizer, length: int) -> Reading:
    """Return the rows to read for a question."""
    pairs = [
        encode(Document(question.prompt, question.written(i)), tokenizer)
        for i in range(len(question.answers))
    ]
    ending = getattr(tokenizer, "end_token_id", None) is not None
    sentences = [sentence[: len(sentence) - ending] for _, sentence in pairs]
    shared = shared_tokens(sentences)
    pairs = fitting(pairs, length, tokenizer)
    sizes = [len(sentence) for sentence in sentences]
    if set(sizes) == {shared + 1}:
        last = [sentence[-1] for sentence in sentences]
        return Reading([pairs[question.correct]], sizes[:1], shared, last)
    return Reading(pairs, sizes, shared, [])


def learning_rows(
    questions: Sequence[Question], tokenizer: Tokenizer, length: int
) -> Windows:
    """Return a training row for each question: the prompt and the right sentence."""
    pairs = [encode(question.document, tokenizer) for question in questions]
    fitted = [fitting([pair], length, tokenizer)[0] for pair in pairs]
    return rows(fitted, length, tokenizer)


def fitting(pairs: list[Pair], length: int, tokenizer: Tokenizer) -> list[Pair]:
    """Cut beginnings of prompts, so that the longest sentence fits into a row."""
    longest = max(len(sentence) for _, sentence in pairs)
    room = length + 1 - longest
    if room < 2:
        raise UserError(
            f"An answer has {longest} tokens and needs a prompt before it. Received: "
            f"--cutoff {length}."
        )
    return [(without_beginning(p, room, tokenizer), sentence) for p, sentence in pairs]


def shared_tokens(sentences: Sequence[Sequence[int]]) -> int:
    """Return the number of leading tokens that all sentences share."""
    columns = zip(*sentences, strict=False)
    return next(
        (place for place, column in enumerate(columns) if len(set(column)) > 1),
        min(map(len, sentences)),
    )


def without_beginning(prompt: list[int], room: int, tokenizer: Tokenizer) -> list[int]:
    """Return a prompt of at most `room` tokens: cut after its start token."""
    if len(prompt) <= room:
        return prompt
    kept = prompt[:1] if getattr(tokenizer, "start_token_id", None) is not None else []
    return kept + prompt[len(prompt) - room + len(kept) :]


def _judgement(
    question: Question,
    found: Reading,
    targets: np.ndarray,
    answers: np.ndarray,
    weights: np.ndarray,
) -> Judgement:
    """Sum up log-likelihoods `(rows, length)` and `(rows, answers)` of a reading."""
    right = 0 if found.last else question.correct
    loss = -np.sum(targets[right] * weights[right])
    if found.last:
        own = answers[0, : len(question.answers)]
    else:
        starts = [len(prompt) - 1 for prompt, _ in found.pairs]
        own = np.array(
            [
                line[start + found.shared : start + size].sum()
                for line, start, size in zip(targets, starts, found.sizes, strict=True)
            ]
        )
    return Judgement(own, float(loss), int(weights[right].sum()))


class Reader(keras.Model):
    """Log-likelihoods that a causal language model gives to tokens of its rows.

    Inputs: `token_ids`, `padding_mask`, `targets`, each `(batch, length)`; `places`
    `(batch, 1)` and `last` `(batch, n)`: n tokens that might come after one place.
    Outputs: those of `targets`, `(batch, length)`, and of `last`, `(batch, n)`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def call(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        names = ("token_ids", "padding_mask")
        logits = ops.cast(self.model({n: inputs[n] for n in names}), "float32")
        totals = ops.logsumexp(logits, axis=-1)
        targets = ops.take_along_axis(logits, inputs["targets"][..., None], axis=-1)
        length, vocabulary = ops.shape(logits)[1:]
        flat = ops.reshape(logits, (-1, length * vocabulary))
        last = inputs["places"] * vocabulary + inputs["last"]
        last = ops.take_along_axis(flat, last, axis=1)
        last_totals = ops.take_along_axis(totals, inputs["places"], axis=1)
        return ops.squeeze(targets, -1) - totals, last - last_totals


def read(
    model: Any,
    windows: Windows,
    places: np.ndarray,
    last: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of `Reader` for all rows."""
    inputs = {
        **windows.inputs,
        "targets": windows.targets,
        "places": places,
        "last": last,
    }
    total = len(places)
    whole = np.arange(total + -total % batch_size) % total
    inputs = {name: array[whole] for name, array in inputs.items()}
    outputs = Reader(model).predict(inputs, batch_size=batch_size, verbose=0)
    return tuple(array[:total] for array in outputs)


def write(
    model: Any,
    questions: Sequence[Question],
    tokenizer: Any,
    length: int,
    batch_size: int,
) -> list[str]:
    """Return a model's greedy continuation of each prompt, of at most `NEW_TOKENS`.

    Prompts of similar length share a batch, since keras-hub generates from the end of
    the shortest prompt in a batch.

    Args:
        model: A causal language model, compiled with the greedy sampler.
        questions: The questions.
        tokenizer: A keras-hub tokenizer.
        length: Most tokens of a prompt; a longer one is cut at its beginning.
        batch_size: Prompts per batch.
    """
    prompts = [
        without_beginning(
            encode(Document(q.prompt, ""), tokenizer)[0], length, tokenizer
        )
        for q in questions
    ]
    stops = [
        getattr(tokenizer, name, None) for name in ("end_token_id", "end_token2_id")
    ]
    stops = [token for token in stops if token is not None]
    generate = model.make_generate_function()
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        full = (chosen * batch_size)[:batch_size]
        inputs = _padded([prompts[i] for i in full], length + NEW_TOKENS, tokenizer)
        inputs = {name: ops.convert_to_tensor(x) for name, x in inputs.items()}
        outputs = generate(inputs, stop_token_ids=stops or None)
        token_ids = ops.convert_to_numpy(outputs["token_ids"])
        for i, line in zip(chosen, token_ids.tolist(), strict=False):
            new = line[len(prompts[i]) :][:NEW_TOKENS]
            end = min((new.index(stop) for stop in stops if stop in new), default=None)
            texts[i] = str(tokenizer.detokenize(new[:end])) if new[:end] else ""
    return texts


def _padded(
    prompts: Sequence[list[int]], length: int, tokenizer: Any
) -> dict[str, np.ndarray]:
    padding = getattr(tokenizer, "pad_token_id", None) or 0
    token_ids = np.full((len(prompts), length), padding, "int32")
    mask = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        token_ids[row, : len(prompt)] = prompt
        mask[row, : len(prompt)] = True
    return {"token_ids": token_ids, "padding_mask": mask}


def accuracy_of_likelihoods(
    questions: Sequence[Question], judgements: Sequence[Judgement]
) -> float:
    """Return the fraction of questions whose right answer is the most likely."""
    pairs = zip(questions, judgements, strict=True)
    return float(np.mean([j.log_likelihoods.argmax() == q.correct for q, j in pairs]))


def accuracy_of_texts(questions: Sequence[Question], texts: Sequence[str]) -> float:
    """Return the fraction of questions whose text names the right answer first."""
    pairs = zip(questions, texts, strict=True)
    return float(np.mean([answer_in(t, q) == q.answers[q.correct] for q, t in pairs]))


def loss_a_token(judgements: Sequence[Judgement]) -> float:
    """Return the mean negative log-likelihood of the right sentences' tokens, nats."""
    return sum(j.loss for j in judgements) / sum(j.tokens for j in judgements)
