"""Ask a language model with an adapter of `randlora_finetuning.py`.

    python examples/chat.py --run randlora-output             # questions line by line
    python examples/chat.py --run randlora-output --prompt "Which metal is liquid?"

Model, dtype and template are those of the run card. For an adapter without one pass
`--adapter`, `--base_model` and `--template`.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Run as a file, it has only its neighbours on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import demo
from checkpoints import ADAPTER
from command_line import (
    BACKENDS,
    DefaultsHelp,
    OneLineParser,
    UserError,
    exit_status,
    positive,
    user_choices,
)
from finetuning_options import TEMPLATES

from keras_randlora_command import quiet, start_tensorflow

NONE = "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer; return 0, or 2 if an option is wrong."""
    options = parse_arguments(arguments)
    os.environ["KERAS_BACKEND"] = options.backend  # read when Keras is imported
    return exit_status("chat.py", lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Load the model with its adapter, and answer each question."""
    with quiet():
        import keras_randlora as kr

    card = run_card(options)
    base = options.base_model or card.get("base_model")
    if base is None:
        raise UserError("--adapter needs --base_model, the model it was trained on.")
    template = options.template or card.get("template", NONE)
    print(f"Loading {base} on {options.backend} …", flush=True)
    start_tensorflow()  # which keras-hub imports
    model, preprocessor = demo.load(base, dtype=card.get("dtype"))
    with user_choices():
        kr.load_adapter(model, options.adapter or options.run / ADAPTER)
    for question in questions(options):
        print(answer(model, preprocessor, question, template, options), flush=True)


def answer(
    model: Any, preprocessor: Any, question: str, template: str, options: Any
) -> str:
    """Return what the model generates after a question in its template."""
    from keras_randlora.data import Renderer, read_record

    record = read_record({"prompt": question}, "question", answered=False)
    name = None if template == NONE else template
    prompt = Renderer(preprocessor, name).prompt(record)
    return reply(model, preprocessor, prompt, options.max_new_tokens).strip()


def reply(model: Any, preprocessor: Any, prompt: str, new_tokens: int = 40) -> str:
    """Return what a model generates after a prompt, up to an end token.

    At least `new_tokens`, rounded up so that prompts share a compiled program.
    """
    length = 1 + len(preprocessor.tokenizer.tokenize(prompt)) + new_tokens
    length = math.ceil(length / 64) * 64
    # Attached for this call: Gemma 3 of keras-hub 0.32 does not generate without.
    model.preprocessor = preprocessor
    try:
        (text,) = model.generate([prompt], max_length=length, strip_prompt=True)
    finally:
        model.preprocessor = None
    return text


def questions(options: argparse.Namespace) -> Iterator[str]:
    """Yield the question of the command line, or the lines of the input."""
    if options.prompt:
        yield options.prompt
        return
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line


def run_card(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options in the run card, none for an adapter alone."""
    if options.adapter is not None:
        return {}
    path = options.run / "run.json"
    with user_choices():
        card = json.loads(path.read_text(encoding="utf-8"))["options"]
    if card["use_lora"]:
        raise UserError(f"{path} is of Keras's LoRA, whose values no base can load.")
    return card


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = OneLineParser(
        prog="chat.py",
        description="Ask a language model with a trained adapter.",
        formatter_class=DefaultsHelp,
    )
    add = parser.add_argument
    add("--backend", choices=BACKENDS, default="jax", help="what Keras runs on")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--run",
        type=Path,
        default=Path("randlora-output"),
        help="the --output_dir of randlora_finetuning.py",
    )
    where.add_argument("--adapter", type=Path, help="an adapter file instead")
    add("--base_model", help="default: that of the run")
    add(
        "--template",
        choices=(*TEMPLATES, NONE),
        help="text around a question; default: that of the run, else none",
    )
    add("--prompt", help="one question; default: ask line by line")
    add("--max_new_tokens", type=positive(int), default=100, help="of an answer")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
