"""Chat templates: from the turns of a conversation to text with and without loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT)


class Turn(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: `"system"`, `"user"` or `"assistant"`.
        content: The text.
        context: What a user's instruction is about: `input` of an Alpaca record.
    """

    role: str
    content: str
    context: str = ""


class Piece(NamedTuple):
    """A part of an example.

    Attributes:
        text: The text.
        learned: Whether its tokens count in the loss.
        ends: Whether the tokenizer's end token follows.
    """

    text: str
    learned: bool
    ends: bool = False


class Template(NamedTuple):
    """The text around the turns of a conversation.

    Attributes:
        user: A user's turn, with `{content}`.
        opening: What precedes an assistant's content; not learned.
        closing: What follows it and is learned; without it the end token follows.
        after: What follows that, before the next turn; not learned.
        system: A system's turn, with `{content}`; `None` if its content precedes that
            of the next user's turn.
        context: What follows a user's content, with `{context}`.
        preambles: The system's content where none is given: without and with context.
        token: The special token whose presence in a vocabulary suggests the template.
    """

    user: str
    opening: str
    closing: str = ""
    after: str = ""
    system: str | None = None
    context: str = "\n\n{context}"
    preambles: tuple[str, str] | None = None
    token: str | None = None

    def pieces(self, turns: Sequence[Turn]) -> Iterator[Piece]:
        """Yield the pieces of a conversation."""
        prefix = ""
        for role, content, context in self._with_preamble(turns):
            if role == ASSISTANT:
                yield Piece(self.opening, learned=False)
                yield Piece(content + self.closing, True, ends=not self.closing)
                yield Piece(self.after, learned=False)
            elif role == SYSTEM:
                if self.system is None:
                    prefix = f"{content}\n\n"
                else:
                    yield Piece(_filled(self.system, content), learned=False)
            else:
                if context:
                    content += self.context.replace("{context}", context)
                yield Piece(_filled(self.user, prefix + content), learned=False)
                prefix = ""

    def _with_preamble(self, turns: Sequence[Turn]) -> list[Turn]:
        if self.preambles is None or turns[0].role == SYSTEM:
            return list(turns)
        plain, with_context = self.preambles
        about = any(turn.context for turn in turns)
        return [Turn(SYSTEM, with_context if about else plain), *turns]


TEMPLATES = {
    "alpaca": Template(
        system="{content}\n\n",
        user="### Instruction:\n{content}\n\n",
        opening="### Response:\n",
        after="\n\n",
        context="\n\n### Input:\n{context}",
        preambles=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.",
            "Below is an instruction that describes a task, paired with an input that "
            "provides further context. "
            "Write a response that appropriately completes the request.",
        ),
    ),
    "chatml": Template(
        system="<|im_start|>system\n{content}<|im_end|>\n",
        user="<|im_start|>user\n{content}<|im_end|>\n",
        opening="<|im_start|>assistant\n",
        closing="<|im_end|>",
        after="\n",
        token="<|im_start|>",
    ),
    "gemma": Template(
        user="<start_of_turn>user\n{content}<end_of_turn>\n",
        opening="<start_of_turn>model\n",
        closing="<end_of_turn>",
        after="\n",
        token="<start_of_turn>",
    ),
    "llama3": Template(
        system="<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>",
        opening="<|start_header_id|>assistant<|end_header_id|>\n\n",
        closing="<|eot_id|>",
        token="<|start_header_id|>",
    ),
    "mistral": Template(user="[INST] {content} [/INST]", opening="", token="[INST]"),
}


def suggested(tokenizer: Any) -> str | None:
    """Return the name of the template whose token the tokenizer keeps, or `None`."""
    vocabulary = set(tokenizer.get_vocabulary())
    for name, template in TEMPLATES.items():
        token = template.token
        if token in vocabulary and len(tokenizer.tokenize(token)) == 1:
            return name
    return None


def _filled(text: str, content: str) -> str:
    return text.replace("{content}", content)
