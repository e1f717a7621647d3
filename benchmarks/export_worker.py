"""Worker process for one export of SmolLM2, for `benchmarks.exports`."""

import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import keras_randlora as kr
from benchmarks.measures import Measures
from benchmarks.memory import HostMemory
from benchmarks.models import MODELS, build_keras
from benchmarks.processes import serve


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of one format."""
    measures, memory = Measures(), HostMemory()
    model = build_keras(MODELS[settings["model"]], "float32")
    size = 4 * model.count_params()
    kr.enable_randlora(model, rank=settings["rank"])
    format = settings["format"]
    suffix = kr.export.FORMATS[format].suffix or ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        held = memory.settle()
        with measures.seconds(format), Children() as children:
            kr.export_merged(model, path, format, verbose=False)
        peak = max(memory.peak(), children.peak)
        files = [file for file in Path(folder).rglob("*") if file.is_file()]
        written = sum(file.stat().st_size for file in files)
    measures.add(f"{format}, bytes / model", written / size)
    measures.add(f"{format}, peak of all processes / model", peak / size)
    measures.add(f"{format}, held before / model", held / size)
    return measures.rows()


class Children(threading.Thread):
    """Samples the memory of this process and its children.

    Attributes:
        peak: The peak of their total bytes.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._done = threading.Event()

    def __enter__(self) -> "Children":
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        """Sample ten times a second."""
        while not self._done.is_set():
            self.peak = max(self.peak, family_bytes())
            time.sleep(0.1)


def family_bytes() -> int:
    """Return the bytes of this process and its children; Linux only."""
    own = Path("/proc/self")
    total = _bytes(own)
    for task in Path("/proc/self/task").glob("*"):
        for child in (task / "children").read_text().split():
            total += _bytes(Path("/proc") / child)
    return total


def _bytes(process: Path) -> int:
    """Return the bytes of a process, 0 if it is gone; what forks share counts once."""
    try:
        rollup = (process / "smaps_rollup").read_text()
    except OSError:
        return 0
    (kilobytes,) = re.findall(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)
    return 1024 * int(kilobytes)


if __name__ == "__main__":
    serve(measure)
