"""Records for instruction tuning, in the forms in which people have them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from keras_randlora.data.templates import ASSISTANT, ROLES, USER, Turn

ALPACA, MESSAGES, PAIR, TEXT = "alpaca", "messages", "prompt and completion", "text"
SUFFIXES = (".json", ".jsonl")
_ANSWERS = ("completion", "response")
# Columns of a batch, as keras-hub's Gemma takes them.
_COLUMNS = {"prompts": "prompt", "responses": "response", "completions": "completion"}


class Record(NamedTuple):
    """A record that was read and checked.

    Attributes:
        form: One of `ALPACA`, `MESSAGES`, `PAIR` and `TEXT`.
        turns: What is said; of `TEXT` one turn of the assistant.
        where: The record's place, for messages.
    """

    form: str
    turns: list[Turn]
    where: str


def read_records(source: Any) -> list[Record]:
    """Read and check records; see `instruction_data`.

    Args:
        source: Records, columns of records, or the path of a `.json` or `.jsonl` file.

    Raises:
        ValueError: A record has no known form, or there is none.
        TypeError: `source` holds no records.
        OSError: The file cannot be read.
    """
    found = [
        read_record(record, where, answered=True) for record, where in _placed(source)
    ]
    if not found:
        raise ValueError("`records` must hold at least one record. Received: none.")
    return found


def read_record(record: Any, where: str, *, answered: bool) -> Record:
    """Read and check one record.

    Args:
        record: A text, or a mapping of one of the forms.
        where: Its place, for messages.
        answered: Whether the answer is needed.

    Raises:
        ValueError: It has no known form, or a field is not text.
    """
    if isinstance(record, str):
        return Record(TEXT, [Turn(ASSISTANT, record)], where)
    if not isinstance(record, Mapping):
        raise ValueError(
            f"{where}: a record is a mapping or a text. Received: "
            f"{type(record).__name__}."
        )
    if "messages" in record:
        return Record(MESSAGES, _messages(record["messages"], where, answered), where)
    answer = next((key for key in _ANSWERS if key in record), "")
    if "instruction" in record and ("output" in record or not answered):
        form, asked, answer = ALPACA, "instruction", "output"
    elif "prompt" in record and (answer or not answered):
        form, asked = PAIR, "prompt"
    elif "text" in record:
        text = _text(record, "text", where)
        return Record(TEXT, [Turn(ASSISTANT, text)], where)
    else:
        raise ValueError(
            f"{where}: a record has `instruction` and `output` (and maybe `input`), "
            "`prompt` and `completion` (or `response`), `messages`, or `text`. "
            f"Received the keys: {', '.join(map(repr, record)) or 'none'}."
        )
    context = _text(record, "input", where) if form == ALPACA else ""
    turns = [Turn(USER, _text(record, asked, where), context)]
    if answer in record:
        turns.append(Turn(ASSISTANT, _text(record, answer, where)))
    return Record(form, turns, where)


def _messages(messages: Any, where: str, answered: bool) -> list[Turn]:
    """Return the turns of a conversation."""
    if isinstance(messages, str) or not isinstance(messages, Iterable):
        raise ValueError(
            f"{where}: `messages` must be a list of messages. Received: "
            f"{type(messages).__name__}."
        )
    turns = []
    for number, message in enumerate(messages):
        place = f"{where}, messages[{number}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            keys = sorted(message) if isinstance(message, Mapping) else message
            raise ValueError(
                f"{place}: a message has `role` and `content`. Received: {keys!r}."
            )
        if message["role"] not in ROLES:
            raise ValueError(
                f"{place}: `role` must be one of {list(ROLES)}. Received: "
                f"role={message['role']!r}."
            )
        turns.append(Turn(message["role"], _text(message, "content", place)))
    if not turns or (answered and ASSISTANT not in {turn.role for turn in turns}):
        raise ValueError(
            f"{where}: `messages` has no message of the role 'assistant' to learn. "
            f"Received the roles: {[turn.role for turn in turns]}."
        )
    return turns


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    """Return a field that must be text; one that is missing or `None` is empty."""
    value = record.get(key)
    if value is None and key == "input":
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: `{key}` must be text. Received: {key}={value!r}.")
    return value


def _placed(source: Any) -> Iterator[tuple[Any, str]]:
    """Yield the records with their places."""
    if isinstance(source, os.PathLike) or (
        isinstance(source, str) and source.endswith(SUFFIXES)
    ):
        yield from _of_file(Path(source))
        return
    if isinstance(source, Mapping):
        source = _rows_of(source)
    if isinstance(source, str) or not isinstance(source, Iterable):
        raise TypeError(
            "`records` must be a list of records, columns of records, or the path of a "
            f".json or .jsonl file. Received: records={source!r}."
        )
    for number, record in enumerate(source):
        yield record, f"records[{number}]"


def _rows_of(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records of columns of equal length."""
    lengths = {
        name: None if isinstance(values, str) else len(values)
        for name, values in columns.items()
    }
    if len(set(lengths.values())) != 1 or None in lengths.values():
        raise ValueError(
            "The columns of `records` must be lists of one length. Received: "
            f"{lengths or 'no columns'}; pass a single record as [record]."
        )
    names = [_COLUMNS.get(name, name) for name in columns]
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _of_file(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the records of a JSON list, or of JSON Lines."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"A file of records ends in '.json' or '.jsonl'. Received: '{path}'."
        )
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        for number, record in enumerate(_parsed(text, str(path)), 1):
            yield record, f"{path}, record {number}"
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _parsed(line, where), where


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not valid JSON: {error}. A file holds one record a line (JSON "
            "Lines), or one list."
        ) from error
