"""The data of `randlora_finetuning.py`: rows of tokens, and questions to answer."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from command_line import UserError, user_choices
from demo import opening
from text_data import (
    Document,
    Windows,
    load_documents,
    pack,
    split,
    unit_mean,
    whole_batches,
)

HELD_OUT_FRACTION = 0.1  # of plain text
RECORDS = (".json", ".jsonl")


class Asked(NamedTuple):
    """A prompt, and the answer in the data if there is one."""

    prompt: str
    expected: str | None


class Data(NamedTuple):
    """Training rows, with scaled weights, validation rows, questions, and template."""

    training: Windows
    validation: Windows | None
    asked: list[Asked]
    template: str | None


def read(path: Path | None) -> list[Any]:
    """Return the records of a `.json` or `.jsonl` file, or documents of plain text."""
    from keras_randlora.data import read_records

    if path is None or path.suffix.lower() not in RECORDS:
        return load_documents(path)
    if not path.is_file():
        raise UserError(f"Cannot read the file of records {path}: it does not exist.")
    return read_records(path)


def prepare(examples: Sequence[Any], preprocessor: Any, options: Any) -> Data:
    """Return rows of at most `cutoff_len` tokens from what `read` returns.

    Args:
        examples: Records, each a row; or documents, which are cut into windows.
        preprocessor: That of the model.
        options: Those of the command line.
    """
    length, size = options.cutoff_len, options.val_set_size
    tokenizer = preprocessor.tokenizer
    with user_choices():
        if isinstance(examples[0], Document):
            if options.template:
                raise UserError("--template is for records, not for plain text.")
            training, kept_back = set_text_aside(examples, size)
            parts = [pack(x, tokenizer, length) for x in (training, kept_back) if x]
            questions = [opening(document.text) for document in kept_back]
            asked = [Asked(text, None) for text in questions[: options.answers]]
            if options.prompt:
                asked.insert(0, Asked(options.prompt, None))
            template = None
        else:
            from keras_randlora.data import Renderer

            training, kept_back = set_aside(examples, size)
            renderer = Renderer(preprocessor, options.template)
            print(f"Tokenizing {len(examples):,} records …", flush=True)
            tokens = [renderer.tokens(x) for x in (training, kept_back) if x]
            longest = max(len(one.ids) for part in tokens for one in part) - 1
            rows = min(length, longest)  # no more padding than needed
            parts = [answer_rows(part, tokenizer, rows) for part in tokens]
            asked = questions_of(kept_back[: options.answers], renderer)
            if options.prompt:
                asked.insert(0, question(options.prompt, examples[0], renderer))
            template = renderer.template_of(examples[0])
    validation = parts[1] if kept_back else None
    if validation is not None:
        if size >= 1:
            validation = validation.spread(int(size))
        validation = whole_batches(validation, options.batch_size)
    scaled = parts[0]._replace(weights=unit_mean(parts[0].weights))
    return Data(scaled, validation, asked, template)


def questions_of(records: Sequence[Any], renderer: Any) -> list[Asked]:
    """Return the prompts of records with the answers in them."""
    return [Asked(renderer.prompt(r), r.turns[-1].content) for r in records]


def question(text: str, like: Any, renderer: Any) -> Asked:
    """Return a question as a prompt of the same form as a record."""
    from keras_randlora.data import read_record

    record = read_record({"instruction": text}, "--prompt", answered=False)
    return Asked(renderer.prompt(record._replace(form=like.form)), None)


def set_aside(records: Sequence[Any], size: float) -> tuple[list[Any], list[Any]]:
    """Hold out records for validation, evenly; equal ones leave the training set."""
    total = len(records)
    count = round(size * total) if size < 1 else int(size)
    if size and not 0 < count < total:
        raise UserError(
            f"--val_set_size {size:g} leaves nothing to train or to validate on. "
            f"Received: {total} records."
        )
    chosen = np.linspace(0, total - 1, count).round().astype(int)
    kept_back = {tuple(records[i].turns): records[i] for i in chosen}
    training = [r for r in records if tuple(r.turns) not in kept_back]
    return training, list(kept_back.values())


def set_text_aside(
    documents: Sequence[Document], size: float
) -> tuple[list[Document], list[Document]]:
    """Hold out a fraction of plain text for validation; a tenth if a count is given."""
    if not size:
        return list(documents), []
    return split(documents, size if size < 1 else HELD_OUT_FRACTION)


def answer_rows(tokens: Sequence[Any], tokenizer: Any, length: int) -> Windows:
    """Return a row for each example, and print how many did not fit.

    Args:
        tokens: At least one example's tokens.
        tokenizer: A keras-hub tokenizer.
        length: Tokens of a row.
    """
    from keras_randlora.data import padded

    fitting = [one for one in tokens if one.has_answer(length)]
    if not fitting:
        raise UserError(
            f"Every prompt alone fills a row. Received: --cutoff_len {length}; the "
            f"shortest prompt has {min(o.learned.index(True) for o in tokens)} tokens."
        )
    if too_long := sum(one.is_cut(length) for one in tokens):
        print(
            f"{too_long} of {len(tokens)} records are longer than {length} tokens and "
            f"were cut; {len(tokens) - len(fitting)} of them have no answer left and "
            "are not used."
        )
    made = padded(fitting, length, getattr(tokenizer, "pad_token_id", None) or 0)
    return Windows(made.token_ids, made.targets, (made.weights > 0).astype("float32"))


def order_of_rows(seed: int, total: int) -> Iterator[int]:
    """Yield row indices without end, shuffled again for each epoch."""
    generator = np.random.default_rng(seed)
    while True:
        yield from generator.permutation(total)
