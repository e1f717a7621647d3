"""Named measures of a life cycle: seconds, counts, bytes."""

import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Measures:
    """Collects the measures of `benchmarks.life_cycle`, one row per name."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def seconds(self, name: str) -> Iterator[None]:
        """Time a block; equal names give their median."""
        started = time.perf_counter()
        yield
        self.add(f"{name}, s", time.perf_counter() - started)

    def add(self, name: str, value: float) -> None:
        """Add a value."""
        self._values.setdefault(name, []).append(value)

    def add_file(self, name: str, path: Path) -> None:
        """Add the size of a file, or of all files in a folder."""
        files = path.rglob("*") if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files if file.is_file())
        self.add(f"{name}, MB", size / 1e6)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per name."""
        return [
            {
                "measure": name,
                "value": statistics.median(values),
                "digits": 0 if max(values) >= 10_000 else 3,
                "values": values,
            }
            for name, values in self._values.items()
        ]
