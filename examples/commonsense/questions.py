"""The questions: Alpaca records whose instruction lists the possible answers.

| file | answers |
|---|---|
| `ARC-Easy`, `ARC-Challenge` | `answer1` … `answer3`, `answer4` or `answer5` |
| `openbookqa` | `answer1` … `answer4` |
| `boolq` | `true`, `false` |
| `piqa`, to test only | `solution1`, `solution2` |
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from text_data import Document, TextDataError, load_documents

TASKS = ("ARC-Easy", "ARC-Challenge", "openbookqa", "boolq", "piqa")
TRAINED_TASKS = TASKS[:-1]
LEAD = "the correct answer is "
_FORMAT = re.compile(r"Answer format: (\S+)")
# The answer words of LLM-Adapters' evaluation, which takes the first in a text.
_ANSWER_WORDS = tuple(map(re.compile, ("answer[1-5]", "solution[12]", "true|false")))


class Question(NamedTuple):
    """A question and its answers.

    Attributes:
        prompt: Everything before the answer, in Alpaca's form.
        answers: The possible answers.
        correct: Index of the right one.
    """

    prompt: str
    answers: tuple[str, ...]
    correct: int

    def written(self, index: int) -> str:
        """Return the sentence that gives an answer."""
        return LEAD + self.answers[index]

    @property
    def document(self) -> Document:
        """The prompt, and the sentence to train on."""
        return Document(self.prompt, self.written(self.correct))


def training_questions(folder: Path, count: int = 0) -> list[Question]:
    """Return the questions of all training files.

    Args:
        folder: The folder of `commonsense/TASK.train.json`.
        count: Number of questions, divided equally among the files; 0 for all.
    """
    found = []
    for index, task in enumerate(TRAINED_TASKS):
        questions = read(folder / "commonsense" / f"{task}.train.json")
        share, rest = divmod(count, len(TRAINED_TASKS))
        found += first_at_random(questions, share + (index < rest) if count else None)
    return found


def test_questions(folder: Path, count: int = 0) -> dict[str, list[Question]]:
    """Return `count` questions of each task's test file, 0 for all."""
    return {
        task: first_at_random(
            read(folder / "commonsense" / f"{task}.test.json"), count or None
        )
        for task in TASKS
    }


def first_at_random(questions: Sequence[Question], count: int | None) -> list[Question]:
    """Return the first questions of a permutation by NumPy's generator with seed 0.

    They are the same for every method and seed; a smaller set is part of a larger one.
    """
    order = np.random.default_rng(0).permutation(len(questions))
    return [questions[i] for i in order[:count]]


def read(path: Path) -> list[Question]:
    """Return the questions of a file.

    Raises:
        TextDataError: The file is missing, or a record is not such a question. The
            message names it.
    """
    documents = load_documents(path)
    return [_question(d, f"{path}, record {n}") for n, d in enumerate(documents, 1)]


def _question(document: Document, where: str) -> Question:
    named = _FORMAT.findall(document.prompt)
    answers = tuple(named[-1].split("/")) if named else ()
    answer = document.text.removeprefix(LEAD)
    if answer not in answers or not document.text.startswith(LEAD):
        raise TextDataError(
            f"{where}: expected 'Answer format: a/b' in the instruction and the output "
            f"'{LEAD}a'. Received: answers {answers}, output {document.text!r}."
        )
    return Question(document.prompt, answers, answers.index(answer))


def answer_in(text: str, question: Question) -> str | None:
    """Return the first answer word in a text, of the words for such questions."""
    own = re.compile("|".join(map(re.escape, question.answers)))
    known = (words for words in _ANSWER_WORDS if words.fullmatch(question.answers[0]))
    found = next(known, own).search(text)
    return found[0] if found else None
