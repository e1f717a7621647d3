"""A Python for the programs that tests start, quick through `fork_client.py`."""

import os
import shlex
import sys
import tempfile
from pathlib import Path

CLIENT = Path(__file__).with_name("fork_client.py")
HELD = "RANDLORA_TESTS_FORKS"  # the folder's name in the environment


def folder_of_run():
    """Make the folder of a run of tests, which its workers inherit, or return None.

    None where a worker asks, and where the system has not what the server needs.
    """
    if HELD in os.environ or not hasattr(os, "pidfd_open"):
        return None
    folder = tempfile.mkdtemp(prefix="randlora-forks-")
    python = Path(folder) / "python"
    command = [sys.executable, "-SE", str(CLIENT), folder, str(os.getpid())]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    python.chmod(0o755)
    os.environ[HELD] = folder
    return folder


def python():
    """Return the path of the quick Python; where there is none, that of this one."""
    if HELD not in os.environ:
        return sys.executable
    return os.path.join(os.environ[HELD], "python")
