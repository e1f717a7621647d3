"""What the tests call instead of Python: a fork of `fork_server.py` runs the program.

Usage: python fork_client.py FOLDER RUN ARGUMENTS..., with the arguments of Python. The
first program on a backend starts its server, with a socket in FOLDER, which ends with
the process RUN. A program that needs more than its arguments, its environment and three
open files gets an interpreter of its own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SERVER = Path(__file__).with_name("fork_server.py")
PATIENCE = 180  # seconds until a server has loaded the frameworks
# What an interpreter reads as it starts.
OF_INTERPRETERS = {"PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONWARNINGS"}


def parse(arguments):
    """Return the warning options, the kind, what to run and its arguments.

    None for others.
    """
    arguments, warnings = list(arguments), []
    while arguments[:1] == ["-W"] and len(arguments) > 1:
        warnings.append(arguments[1])
        del arguments[:2]
    kind = {"-c": "code", "-m": "module"}.get(arguments[0], "file")
    if kind != "file":
        del arguments[0]
    # Python's own helpers of processes inherit more files.
    if arguments[0].startswith("-") or "multiprocessing" in arguments[0]:
        return None
    return warnings, kind, *arguments


def connect(folder, run):
    """Return a connection to the server of this backend; start it where none is."""
    path = folder / os.environ["KERAS_BACKEND"]
    try:
        os.close(os.open(f"{path}.started", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass
    else:
        environment = dict(os.environ)
        environment.pop("PYTHONPATH", None)
        with open(f"{path}.log", "w") as log:
            subprocess.Popen(
                [sys.executable, "-W", "ignore", SERVER, path, run],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    end = time.monotonic() + PATIENCE
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    while True:
        try:
            connection.connect(str(path))
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > end:
                sys.exit(Path(f"{path}.log").read_text())
            time.sleep(0.02)


def main(folder, run, arguments):
    """Run a command of Python; return its exit status, negative for a signal."""
    parsed = parse(arguments)
    if parsed is None or OF_INTERPRETERS & os.environ.keys():
        os.execv(sys.executable, [sys.executable, *arguments])
    warnings, *command = parsed
    program = {
        "warnings": warnings,
        "command": command,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "python": str(folder / "python"),
    }
    with connect(folder, run) as connection:
        socket.send_fds(connection, [json.dumps(program).encode()], [0, 1, 2])
        return int(connection.recv(16))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    status = main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)
