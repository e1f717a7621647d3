"""XLA programs that the tests compile, kept from one run to the next.

A run has a folder of its own, which its workers and subprocesses share. Only one of a
run that passed is kept: JAX never replaces an entry that a killed process has left
incomplete.
"""

import os
import shutil
import tempfile
from pathlib import Path

KEPT = Path(__file__).parents[1] / "build" / "xla-programs"
MOST_BYTES = 1_000_000_000


def folder_of_run(kept=KEPT):
    """Return a new folder with the programs of former runs."""
    kept.parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{kept.name}-", dir=kept.parent))
    for program in kept.glob("*"):
        os.link(program, folder / program.name)
    return folder


def end_run(folder, passed, kept=KEPT, most_bytes=MOST_BYTES):
    """Keep the folder of a run that passed, unless it has grown too large."""
    size = sum(program.stat().st_size for program in folder.iterdir())
    if passed and size <= most_bytes:
        shutil.rmtree(kept, ignore_errors=True)
        folder.rename(kept)
    elif passed:
        shutil.rmtree(kept, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
