"""Command lines of the examples, with errors in one line."""

import argparse
import contextlib
import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

BACKENDS = ("jax", "torch", "tensorflow")
Number = TypeVar("Number", int, float)


class UserError(Exception):
    """An error in the user's request; the message says why."""


class DefaultsHelp(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is False or action.default in (None, []):
            return action.help
        return super()._get_help_string(action)


class ParagraphsHelp(DefaultsHelp, argparse.RawDescriptionHelpFormatter):
    """The same, with the line breaks of the description."""


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def exit_status(program: str, action: Callable[[], int | None]) -> int:
    """Run an action; return its result, 0 for `None`, and 2 after a `UserError`."""
    try:
        return action() or 0
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"{program}: error: {message}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def user_choices() -> Iterator[None]:
    """Report an error caused by an option's value as the user's error."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise UserError(str(error)) from error


def positive(number: type[Number]) -> Callable[[str], Number]:
    """Return a parser of positive numbers of a type."""

    def parse(text: str) -> Number:
        value = number(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be positive. Received: {text}")
        return value

    parse.__name__ = number.__name__
    return parse


def shard(text: str) -> tuple[int, int]:
    """Return part and parts of `I/N`, for `items[part - 1 :: parts]`."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 0 < int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(
            f"must be I/N with I from 1 to N. Received: {text}"
        )
    return int(match[1]), int(match[2])
