"""Token ids of examples, and padded arrays of them with weights for the loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_randlora.data.templates import Piece
from keras_randlora.tools import shown

CHUNK = 256  # texts for one call of a tokenizer


class Tokens(NamedTuple):
    """The tokens of one example.

    Attributes:
        ids: Token ids.
        learned: Whether each counts in the loss, as a target.
    """

    ids: list[int]
    learned: list[bool]

    def has_answer(self, length: int) -> bool:
        """Return whether a row of `length` tokens has a target that counts."""
        return any(self.learned[1 : length + 1])

    def is_cut(self, length: int) -> bool:
        """Return whether a row of `length` tokens, and its targets, lack some."""
        return len(self.ids) > length + 1


class Arrays(NamedTuple):
    """Examples of one length for next-token prediction.

    Attributes:
        token_ids: `(examples, length)` int32.
        padding_mask: `(examples, length)` int32, 0 on padding.
        targets: `(examples, length)` int32, the token that follows each of `token_ids`.
        weights: `(examples, length)` float32, 0 where a target does not count.
    """

    token_ids: np.ndarray
    padding_mask: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Join neighbours of one kind, since tokens may cross them; end with an answer.

    What follows the last answer is dropped.
    """
    found: list[Piece] = []
    for text, learned, ends in pieces:
        if found and found[-1].learned == learned and not found[-1].ends:
            found[-1] = Piece(found[-1].text + text, learned, ends)
        elif text or ends or learned:
            found.append(Piece(text, learned, ends))
    while found and not found[-1].learned:
        found.pop()
    return found


def without_start(text: str, preprocessor: Any) -> str:
    """Remove a start token from the text: `generate` puts one before every prompt."""
    tokenizer = preprocessor.tokenizer
    if _start(preprocessor):
        return text.removeprefix(str(tokenizer.id_to_token(tokenizer.start_token_id)))
    return text


def tokenized(examples: Sequence[Sequence[Piece]], preprocessor: Any) -> list[Tokens]:
    """Return the tokens of examples, with start and end tokens.

    Args:
        examples: The joined pieces of each example.
        preprocessor: A keras-hub preprocessor of a causal language model.
    """
    tokenizer = preprocessor.tokenizer
    start, end = _start(preprocessor), getattr(tokenizer, "end_token_id", None)
    texts = [piece.text for pieces in examples for piece in pieces]
    chunks = [texts[at : at + CHUNK] for at in range(0, len(texts), CHUNK)]
    ids_of = iter(
        ids
        for chunk in shown(chunks, "Tokenizing", f"{CHUNK} texts")
        for ids in _ids(tokenizer, chunk)
    )
    found = []
    for pieces in examples:
        ids, learned = [*start], [False] * len(start)
        for number, piece in enumerate(pieces, 1):
            part = next(ids_of)
            last = number == len(pieces)
            if end is not None and (piece.ends or last) and part[-1:] != [end]:
                part = [*part, int(end)]
            ids += part
            learned += [piece.learned] * len(part)
        found.append(Tokens(ids, learned))
    return found


def padded(examples: Sequence[Tokens], length: int, padding: int) -> Arrays:
    """Return a row for each example, cut or padded at its end.

    The weights are scaled so that Keras's mean over all entries of all rows is the mean
    over the targets that count.

    Args:
        examples: Each has a target that counts among its first `length + 1` tokens.
        length: Tokens of a row.
        padding: The id of the padding token.
    """
    shape = (len(examples), length + 1)
    ids = np.full(shape, padding, "int32")
    mask, weights = np.zeros(shape, "int32"), np.zeros(shape, "float32")
    for row, tokens in enumerate(examples):
        size = min(len(tokens.ids), length + 1)
        ids[row, :size] = tokens.ids[:size]
        mask[row, :size] = 1
        weights[row, :size] = tokens.learned[:size]
    weights = weights[:, 1:]
    return Arrays(ids[:, :-1], mask[:, :-1], ids[:, 1:], weights / weights.mean())


def _start(preprocessor: Any) -> list[int]:
    """Return the tokens that a preprocessor puts before a text."""
    start = getattr(preprocessor.tokenizer, "start_token_id", None)
    if start is None or not getattr(preprocessor, "add_start_token", True):
        return []
    return [int(start)]


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text."""
    found = tokenizer.tokenize(texts)
    if hasattr(found, "to_list"):  # TensorFlow's ragged tensor
        found = found.to_list()
    return [[int(i) for i in ids] for ids in found]
