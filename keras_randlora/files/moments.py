"""Moments of a training run, and the rule for which adapter files to keep."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Moment(NamedTuple):
    """The moment of a run at which an adapter was saved.

    Attributes:
        epoch: Number of finished epochs: the `initial_epoch` to resume with.
        step: Steps of the optimizer so far.
        monitor: The metric that selects the best adapter.
        value: Its value, `None` if training did not report it.
    """

    epoch: int
    step: int
    monitor: str
    value: float | None


class SavedAdapter(NamedTuple):
    """An adapter file of a run.

    Attributes:
        path: The file.
        moment: When it was saved.
    """

    path: Path
    moment: Moment


class Rule(NamedTuple):
    """The files to keep: the latest, the best, or both.

    Attributes:
        last: Number of latest files; `None` if age does not count.
        best: Number of best files; `None` if the value does not count.
        small: Whether smaller values are better.
    """

    last: int | None
    best: int | None
    small: bool

    def kept(self, files: list[SavedAdapter]) -> list[SavedAdapter]:
        """Return the files that are kept, in their order.

        Args:
            files: The oldest first. Of two equal values the older is better; NaN is
                never good. A file without a value is kept, unless age counts.
        """
        if self.last is None and self.best is None:
            return files
        chosen = files[-self.last :] if self.last else []
        if self.best is not None:
            values = [(f.moment.value, f) for f in files if f.moment.value is not None]
            good = [(value, f) for value, f in values if not math.isnan(value)]
            good.sort(key=lambda pair: pair[0], reverse=not self.small)  # is stable
            chosen = [*chosen, *(file for _, file in good[: self.best])]
            if self.last is None:
                chosen += [file for file in files if file.moment.value is None]
        return [file for file in files if file in chosen]


def matching(template: str) -> Iterator[Path]:
    """Yield the files whose path matches a template with fields."""
    parts = list(string.Formatter().parse(template))
    if all(field is None for _, field, _, _ in parts):
        yield from [Path(template)] if Path(template).is_file() else []
        return
    pattern = "".join(
        re.escape(text) + ("" if field is None else ".+") for text, field, _, _ in parts
    )
    folder = Path(parts[0][0] + "_").parent
    for path in sorted(folder.rglob("*")):
        if re.fullmatch(pattern, str(path)) and path.is_file():
            yield path
