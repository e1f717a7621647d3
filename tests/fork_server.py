"""Starts Python programs as forks of a process that has loaded the frameworks.

Usage: python fork_server.py SOCKET RUN, by `fork_client.py`. A program finds Keras, on
the backend of `KERAS_BACKEND`, and keras-hub loaded, which takes 6 to 12 seconds in a
new process. Nothing is computed before a fork, and `keras_randlora` is not loaded. The
server ends with the process RUN.
"""

import contextlib
import gc
import json
import os
import random
import runpy
import select
import signal
import socket
import sys
import tempfile
import types
import warnings

import numpy as np

MOST_BYTES = 1 << 20


def load():
    """Load what the programs have in common."""
    import keras  # noqa: F401

    with contextlib.suppress(ImportError):
        import keras_hub  # noqa: F401
    gc.freeze()  # as the documentation of `gc` advises before forks


def serve(path, run):
    """Serve until a process ends; return in each fork what it is to do."""
    run = os.pidfd_open(run)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"{path}.new")
        listener.listen(64)
        os.rename(f"{path}.new", path)
        # Attendants leave nothing to wait for.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            if run in select.select([listener, run], [], [])[0]:
                sys.exit()
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    return attend(connection)


def attend(connection):
    """Fork once more and tell the client how that ends; the fork returns its task."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, files, _, _ = socket.recv_fds(connection, MOST_BYTES, 3)
    program = os.fork()
    if program == 0:
        os.setsid()
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        sys.stdin = sys.__stdin__ = open(0, closefd=False)
        sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)
        sys.stderr = sys.__stderr__ = open(2, "w", 1, closefd=False)
        return json.loads(message)
    for number in (*files, 0, 1, 2):
        os.close(number)
    ended = os.pidfd_open(program)
    if connection in select.select([connection, ended], [], [])[0]:
        # The client was killed. With it goes what the program has started.
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(program, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(str(status).encode())
    os._exit(0)


def forget(package):
    """Let a package be imported anew, as it reads the environment then."""
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            del sys.modules[name]


def become(program):
    """Take the place of an interpreter that was started with such a command."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(program["environment"])
    os.chdir(program["folder"])
    for name in [n for n in os.environ if os.environ[n] != before.get(n)]:
        if name.startswith("JAX_") and "jax" in sys.modules:
            sys.modules["jax"].config.update(name.lower(), os.environ[name])
        elif name.startswith("HF_"):
            forget("huggingface_hub")
    tempfile.tempdir = None  # as the environment says
    random.seed()
    np.random.seed()
    sys.warnoptions[:] = program["warnings"]
    for action in program["warnings"]:
        warnings.simplefilter(action)
    kind, what, *arguments = program["command"]
    first = os.path.dirname(what) if kind == "file" else ""
    given = os.environ.get("PYTHONPATH", "")
    sys.executable = program["python"]
    sys.path[:1] = [first, *filter(None, given.split(os.pathsep))]
    sys.argv[:] = [what if kind == "file" else f"-{kind[0]}", *arguments]
    if kind == "module":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "file":
        runpy.run_path(what, run_name="__main__")
    else:
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)


if __name__ == "__main__":
    load()
    become(serve(sys.argv[1], int(sys.argv[2])))
