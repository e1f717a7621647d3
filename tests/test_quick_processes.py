"""A program that `fork_server.py` runs is as one that Python runs."""

import os
import select
import subprocess
import sys

import forks
import pytest

pytestmark = [
    pytest.mark.any_backend,
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="of Linux"),
]
PROGRAM = "import os, sys; print(__name__, sys.argv, os.getcwd(), os.environ['ONE'])"
NEIGHBOUR = "print('by its name', flush=True)\n"
SCRIPT = "import neighbour, os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n"
COMMANDS = {
    "code": ["-c", PROGRAM, "a", "b c"],
    "warnings": ["-W", "error", "-c", "import warnings; warnings.warn('no')"],
    "status": ["-c", "raise SystemExit(7)"],
    "message": ["-c", "raise SystemExit('no')"],
    "file": ["folder/script.py"],
    "module": ["-m", "neighbour"],
    "input": ["-c", "print(input()[::-1])"],
    "unknown option": ["-S", "-c", "print('by itself')"],
}


def outcome(python, arguments, folder):
    """Return the exit status of a program and the last line of what it said."""
    done = subprocess.run(
        [python, *arguments],
        cwd=folder,
        env={**os.environ, "ONE": "1", "PYTHONPATH": str(folder / "folder")},
        input="abc",
        capture_output=True,
        text=True,
    )
    said = (done.stdout or done.stderr).splitlines()
    return done.returncode, said[-1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_it_ends_and_prints_as_with_python(tmp_path, command):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "neighbour.py").write_text(NEIGHBOUR)
    (tmp_path / "folder" / "script.py").write_text(SCRIPT)
    assert forks.python() != sys.executable
    quick, plain = (
        outcome(python, COMMANDS[command], tmp_path)
        for python in (forks.python(), sys.executable)
    )
    assert quick == plain
    assert plain[1] or command in ("status", "file")


def test_it_is_killed_with_its_client(tmp_path):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with subprocess.Popen(
        [forks.python(), "-c", code], stdout=subprocess.PIPE, text=True
    ) as client:
        program = os.pidfd_open(int(client.stdout.readline()))
        client.kill()
        client.wait()
    ended, _, _ = select.select([program], [], [], 30)
    os.close(program)
    assert ended
