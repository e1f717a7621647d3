"""Programs that run at the same time and wait for each other, as on several hosts."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ON_CPU = {
    "PYTHONPATH": str(Path(__file__).parents[1]),
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_PLATFORMS": "cpu",
}


class Ended(NamedTuple):
    """How a program ended: its exit status, and all that it printed."""

    status: int
    printed: str


def free_port():
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def run_together(commands, seconds, environments=({}, {})):
    """Run Python programs at the same time, and kill all if one takes too long.

    Args:
        commands: The arguments of each.
        seconds: How long all of them may take together.
        environments: What each adds to the environment.

    Raises:
        TimeoutError: They took longer; with what they printed.
    """
    with contextlib.ExitStack() as stack:
        started = []
        for command, environment in zip(commands, environments, strict=True):
            file = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", *map(str, command)],
                env={**os.environ, **ON_CPU, **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            stack.callback(_kill, process)
            started.append((process, file))
        end = time.monotonic() + seconds
        late = False
        for process, _ in started:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                late = True
        ended = [Ended(process.poll(), _content(file)) for process, file in started]
        if late:
            printed = "\n\n".join(one.printed[-3000:] for one in ended)
            raise TimeoutError(f"not done in {seconds} seconds:\n{printed}")
        return ended


def _kill(process):
    """Kill a program and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


def _content(file):
    file.seek(0)
    return file.read()
