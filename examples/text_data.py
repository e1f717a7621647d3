"""Turn text into fixed windows of tokens for training a causal language model.

Three steps, each a function::

    documents = load_documents("alpaca.jsonl")       # or none: Python's own help texts
    training, held_out = split(documents)
    windows = pack(training, tokenizer, length=128)
    model.fit(windows.inputs, windows.targets, sample_weight=windows.weights)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

ALPACA_PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that "
    "provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


class TextDataError(ValueError):
    """Training on the given text is impossible; the message says what to change."""


class Document(NamedTuple):
    """A prompt without loss, and a text whose tokens count in the loss.

    Plain text has an empty prompt.
    """

    prompt: str
    text: str


class Windows(NamedTuple):
    """Next-token prediction examples: `n` windows of `length` tokens each.

    Attributes:
        token_ids: `(n, length)` int32.
        targets: `(n, length)` int32, the token that follows each of `token_ids`.
        weights: `(n, length)` float32, 1 where the target counts in the loss, else 0.
    """

    token_ids: np.ndarray
    targets: np.ndarray
    weights: np.ndarray

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The inputs of keras-hub's language models; no position is padding."""
        return {
            "token_ids": self.token_ids,
            "padding_mask": np.ones_like(self.token_ids),
        }

    def spread(self, count: int) -> "Windows":
        """Return at most `count` windows, spread evenly over all of them."""
        total = len(self.token_ids)
        chosen = np.linspace(0, total - 1, min(count, total)).round().astype(int)
        return Windows(*(array[chosen] for array in self))


class Tokenizer(Protocol):
    """The part of a keras-hub tokenizer that `pack` uses.

    The attributes `start_token_id` and `end_token_id` are used where they exist.
    """

    def tokenize(self, inputs: str) -> Any:
        """Return the token ids of `inputs`."""


def load_documents(path: str | Path | None = None) -> list[Document]:
    """Read the documents of a file, or Python's help topics where none is given.

    Args:
        path: A `.jsonl` or `.json` file of Alpaca records (`instruction`, `output`
            and optionally `input`), or plain UTF-8 text in a file of any other name.

    Returns:
        One document for each record or topic; a plain text file is one document.

    Raises:
        TextDataError: The file is missing, unreadable, empty, or a record is not in
            Alpaca's form. The message names the line.
    """
    if path is None:
        return _python_help_topics()
    path = Path(path)
    text = _read(path)
    if path.suffix.lower() not in (".json", ".jsonl"):
        return [Document("", text)]
    return [_alpaca_document(record, where) for record, where in _records(path, text)]


def split(
    documents: Sequence[Document], held_out: float = 0.1
) -> tuple[list[Document], list[Document]]:
    """Split documents into a training set and a held-out set without overlap.

    Every tenth document is held out (for `held_out=0.1`), or the last one of fewer; of
    a single document, its last tenth. Then everything that both sets share is removed
    from the training set: equal records, and equal paragraphs of plain text.

    Args:
        documents: At least one document.
        held_out: The fraction to hold out, above 0 and at most a half.

    Returns:
        The documents to train on, and those held out.
    """
    if not 0 < held_out <= 0.5:
        raise TextDataError(
            f"`held_out` must be above 0 and at most 0.5. Received: held_out={held_out}"
        )
    if len(documents) == 1:
        training, kept_back = _cut(documents[0], held_out)
    else:
        step = min(round(1 / held_out), len(documents))
        kept_back = list(documents[step - 1 :: step])
        training = [d for i, d in enumerate(documents) if i % step != step - 1]
    return _without_shared(training, kept_back), kept_back


def pack(documents: Sequence[Document], tokenizer: Tokenizer, length: int) -> Windows:
    """Join the documents' tokens and cut them into windows of one length.

    Each document ends with the tokenizer's end token and each window starts with its
    start token, if it has them. Targets in a document's prompt have weight 0. Windows
    without a target and the incomplete window at the end are dropped.

    Args:
        documents: What to pack, in this order.
        tokenizer: A keras-hub tokenizer.
        length: The length of a window, in tokens.

    Raises:
        TextDataError: The documents do not fill one window.
    """
    token_ids, learned = _stream(documents, tokenizer)
    received = len(token_ids)
    start = getattr(tokenizer, "start_token_id", None)
    size = length + 1 if start is None else length
    count = len(token_ids) // size
    token_ids = token_ids[: count * size].reshape(count, size)
    learned = learned[: count * size].reshape(count, size)
    if start is not None:
        token_ids = np.pad(token_ids, ((0, 0), (1, 0)), constant_values=start)
        learned = np.pad(learned, ((0, 0), (1, 0)))
    useful = learned[:, 1:].any(axis=1)
    if not useful.any():
        raise TextDataError(
            f"Too little text to fill one window of {length} tokens with something to "
            f"learn. Received: {len(documents)} document(s), {received} tokens. Give "
            "more text or a smaller sequence length."
        )
    token_ids, learned = token_ids[useful], learned[useful]
    return Windows(
        token_ids=token_ids[:, :-1],
        targets=token_ids[:, 1:],
        weights=learned[:, 1:].astype("float32"),
    )


def encode(document: Document, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt after the start token, and of an answer to its end.

    A tokenizer without a start or an end token adds none.
    """
    start = getattr(tokenizer, "start_token_id", None)
    end = getattr(tokenizer, "end_token_id", None)
    prompt, answer = (
        [int(i) for i in tokenizer.tokenize(text)] if text else [] for text in document
    )
    return [i for i in (start, *prompt) if i is not None], [
        i for i in (*answer, end) if i is not None
    ]


def rows(
    pairs: Sequence[tuple[list[int], list[int]]], length: int, tokenizer: Tokenizer
) -> Windows:
    """Return a padded row for each prompt and answer; weights are 1 on answers.

    Padding comes after the answers, where it cannot affect a causal model. Rows that
    are too long are cut at the end; rows without any of their answer are left out.
    """
    padding = getattr(tokenizer, "pad_token_id", None) or 0
    fitting = [pair for pair in pairs if len(pair[0]) <= length]
    token_ids = np.full((len(fitting), length + 1), padding, "int32")
    learned = np.zeros((len(fitting), length + 1), "float32")
    for row, (prompt, answer) in enumerate(fitting):
        ids = [*prompt, *answer][: length + 1]
        token_ids[row, : len(ids)] = ids
        learned[row, len(prompt) : len(ids)] = 1
    return Windows(token_ids[:, :-1], token_ids[:, 1:], learned[:, 1:])


def whole_batches(windows: Windows, batch_size: int) -> Windows:
    """Pad to whole batches with the first row at weight 0; scale the weights.

    So there is one shape to compile, and Keras's mean is over tokens with weight 1.
    """
    missing = -len(windows.token_ids) % batch_size
    token_ids, targets, weights = (
        np.concatenate([array, np.repeat(array[:1], missing, axis=0)])
        for array in windows
    )
    weights[len(weights) - missing :] = 0
    return Windows(token_ids, targets, unit_mean(weights))


def unit_mean(weights: np.ndarray) -> np.ndarray:
    """Scale weights so that Keras's mean is over the tokens that count."""
    return weights / weights.mean()


def alpaca_prompt(instruction: str, context: str = "") -> str:
    """Return the Alpaca prompt that an answer follows."""
    template = ALPACA_PROMPT_WITH_INPUT if context else ALPACA_PROMPT
    return template.format(instruction=instruction, input=context)


def _python_help_topics() -> list[Document]:
    """Return the language reference of `help()`, one document for each topic."""
    from pydoc_data.topics import topics

    return [Document("", topics[name]) for name in sorted(topics)]


def _read(path: Path) -> str:
    """Return the text of a file that must hold some."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise TextDataError(f"Cannot read the text file {path}: {reason}.") from error
    if not text.strip():
        raise TextDataError(f"The text file {path} is empty.")
    return text


def _records(path: Path, text: str) -> list[tuple[Any, str]]:
    """Return a JSON file's records with where each stands: a list, or one a line."""
    if text.lstrip().startswith("["):
        records = _parse(text, str(path))
        return [(item, f"{path}, record {n}") for n, item in enumerate(records, 1)]
    lines = [(line, f"{path}, line {n}") for n, line in enumerate(text.split("\n"), 1)]
    return [(_parse(line, where), where) for line, where in lines if line.strip()]


def _parse(text: str, where: str) -> Any:
    """Return the value that `text` spells in JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TextDataError(
            f"{where}: not valid JSON: {error}. One record a line is expected "
            "(JSON Lines), or one JSON list."
        ) from error


def _alpaca_document(record: Any, where: str) -> Document:
    """Return the document that an Alpaca record describes."""
    if not isinstance(record, dict):
        raise TextDataError(
            f"{where}: expected a JSON object. Received: {type(record).__name__}"
        )
    for key in ("instruction", "output"):
        if key not in record:
            raise TextDataError(
                f"{where}: an Alpaca record needs `instruction` and `output`. "
                f"Received: {', '.join(sorted(record)) or 'no keys'}"
            )
    fields = [record.get(key) or "" for key in ("instruction", "input", "output")]
    if not all(isinstance(field, str) for field in fields):
        raise TextDataError(f"{where}: `instruction`, `input`, `output` must be text.")
    instruction, context, output = fields
    return Document(alpaca_prompt(instruction, context), output)


def _cut(document: Document, held_out: float) -> tuple[list[Document], list[Document]]:
    """Cut a document in two between words, the second part the fraction held out."""
    prompt, text = document
    place = text.rfind(" ", 0, max(1, round(len(text) * (1 - held_out)))) + 1
    if prompt or not place:
        raise TextDataError(
            "Nothing can be held out from so little text. Received: one "
            f"{'record' if prompt else 'word'}. Give more text."
        )
    return [Document("", text[:place])], [Document("", text[place:])]


def _without_shared(
    training: Sequence[Document], held_out: Sequence[Document]
) -> list[Document]:
    """Return `training` without the records and paragraphs that `held_out` has too."""
    seen_records = {document for document in held_out if document.prompt}
    seen_paragraphs = {
        paragraph
        for document in held_out
        if not document.prompt
        for paragraph in _paragraphs(document.text)
    }
    kept = []
    for document in training:
        if document.prompt:
            text = "" if document in seen_records else document.text
        else:
            paragraphs = _paragraphs(document.text)
            text = "\n\n".join(p for p in paragraphs if p not in seen_paragraphs)
        if text.strip():
            kept.append(document._replace(text=text))
    return kept


def _paragraphs(text: str) -> list[str]:
    """Return the pieces of `text` between blank lines."""
    return text.split("\n\n")


def _stream(
    documents: Sequence[Document], tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Return all tokens `(total,)` int32, and which count in the loss `(total,)`."""
    end = getattr(tokenizer, "end_token_id", None)
    end_ids = np.array([] if end is None else [end], "int32")
    token_ids, learned = [end_ids[:0]], [np.zeros(0, bool)]
    for prompt, text in documents:
        prompt_ids = _tokenize(tokenizer, prompt)
        text_ids = np.concatenate([_tokenize(tokenizer, text), end_ids])
        token_ids += [prompt_ids, text_ids]
        learned += [np.zeros(len(prompt_ids), bool), np.ones(len(text_ids), bool)]
    return np.concatenate(token_ids), np.concatenate(learned)


def _tokenize(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Return the ids of `text`, `(tokens,)` int32."""
    ids = tokenizer.tokenize(text) if text else []
    return np.array([int(i) for i in ids], "int32")
