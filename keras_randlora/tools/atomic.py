"""Atomic replacement of files and folders."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a temporary file, sync, and rename it to `path`; make missing folders.

    A crash at any moment leaves the former file whole.

    Raises:
        OSError: The file cannot be written. The former one is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[str]:
    """Yield a temporary path whose files move to `path` and beside it on success.

    Former files are replaced; if anything fails they stay.

    Raises:
        FileExistsError: There is a folder that holds more than the new one.
    """
    with tempfile.TemporaryDirectory(
        dir=path.parent, prefix=f".{path.name}."
    ) as folder:
        written, former = Path(folder) / "written", Path(folder) / "former"
        written.mkdir()
        former.mkdir()
        yield str(written / path.name)
        names = sorted(entry.name for entry in written.iterdir())
        for name in names:
            _require_nothing_else(path.parent / name, written / name)
        try:
            for name in names:
                if (path.parent / name).exists():
                    (path.parent / name).rename(former / name)
            for name in names:
                (written / name).rename(path.parent / name)
        except BaseException:
            for name in set(names) - {entry.name for entry in written.iterdir()}:
                (path.parent / name).rename(written / name)
            for entry in former.iterdir():
                entry.rename(path.parent / entry.name)
            raise


def _require_nothing_else(former: Path, new: Path) -> None:
    """Refuse to replace a folder that holds more than the new one."""
    if not (former.is_dir() and new.is_dir()):
        return
    others = {e.name for e in former.iterdir()} - {e.name for e in new.iterdir()}
    if others:
        raise FileExistsError(
            f"'{former}' holds '{min(others)}', which would be lost. Choose another "
            "path, or delete the folder."
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
