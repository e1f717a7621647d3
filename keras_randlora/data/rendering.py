"""From records to text and tokens, through a template."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from keras_randlora.data.records import ALPACA, MESSAGES, TEXT, Record
from keras_randlora.data.templates import ASSISTANT, TEMPLATES, Piece, Turn, suggested
from keras_randlora.data.tokens import Tokens, joined, tokenized, without_start
from keras_randlora.tools import one_of


class Renderer:
    """The template of a run, for the preprocessor of a model.

    Args:
        preprocessor: A keras-hub preprocessor of a causal language model.
        template: A name in `TEMPLATES`, or `None` for that of each form of record.

    Raises:
        ValueError: There is no such template.
    """

    def __init__(self, preprocessor: Any, template: str | None) -> None:
        if template is not None:
            one_of("template", template, list(TEMPLATES))
        self._preprocessor = preprocessor
        self._template = template

    def template_of(self, record: Record) -> str | None:
        """Return the name of a record's template, `None` if it is used as it is.

        Raises:
            ValueError: Messages need a template, or a text is given one.
        """
        if self._template is not None:
            if record.form == TEXT:
                raise ValueError(
                    f"{record.where}: a text has no question and answer for template="
                    f"'{self._template}'. Pass template=None, or another form of "
                    "record."
                )
            return self._template
        if record.form == ALPACA:
            return "alpaca"
        return self._suggested if record.form == MESSAGES else None

    def tokens(self, records: Sequence[Record]) -> list[Tokens]:
        """Return the tokens of records, with start and end tokens."""
        return tokenized(list(map(self._pieces, records)), self._preprocessor)

    def prompt(self, record: Record) -> str:
        """Return what precedes the last answer, which may be missing."""
        if record.form == TEXT:
            return record.turns[0].content
        turns = record.turns[: -1 if record.turns[-1].role == ASSISTANT else None]
        asked = record._replace(turns=[*turns, Turn(ASSISTANT, "")])
        return "".join(piece.text for piece in self._pieces(asked)[:-1])

    def _pieces(self, record: Record) -> list[Piece]:
        name = self.template_of(record)
        if name is None:
            pieces = [Piece(t.content, t.role == ASSISTANT) for t in record.turns]
        else:
            pieces = list(TEMPLATES[name].pieces(record.turns))
        text = without_start(pieces[0].text, self._preprocessor)
        return joined([pieces[0]._replace(text=text), *pieces[1:]])

    @functools.cached_property
    def _suggested(self) -> str:
        """The template whose tokens the model has."""
        tokenizer = self._preprocessor.tokenizer
        found = suggested(tokenizer)
        if found is None:
            raise ValueError(
                "Messages need a template, and the vocabulary of "
                f"{type(tokenizer).__name__} has the tokens of none: pass `template`, "
                f"one of {list(TEMPLATES)}."
            )
        return found
