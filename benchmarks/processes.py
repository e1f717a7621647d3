"""Worker processes: environment, threads and errors."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def environment(backend: str, threads: int, device: str) -> dict[str, str]:
    """Return the environment of a worker."""
    count = str(threads)
    hidden = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    return {
        **os.environ,
        **(hidden if device == "cpu" else {}),
        "KERAS_BACKEND": backend,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "TF_NUM_INTRAOP_THREADS": count,
        "TF_NUM_INTEROP_THREADS": count,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TOKENIZERS_PARALLELISM": "false",
    }


def limit_threads(count: int) -> None:
    """Limit this process to `count` cores, as XLA and TensorFlow respect."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def one_line(error: Exception) -> str:
    """Return an error's kind and message without line breaks and colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return f"{type(error).__name__}: {' '.join(plain.split())}"[:400]


def rows_of(
    module: str, settings: dict[str, Any], backend: str, threads: int
) -> list[dict[str, Any]]:
    """Run a module that calls `serve` on a backend, and return its rows.

    Its log is shown only if it dies; the row then has an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rows.json"
        command = [sys.executable, "-m", module, json.dumps(settings), str(output)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(backend, threads, "cpu"),
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            return json.loads(output.read_text())
    print(done.stderr, file=sys.stderr)
    last = done.stderr.strip().splitlines()[-1:] or ["nothing was said"]
    error = f"{module} ended with status {done.returncode}: {last[0]}"
    return [{"method": backend, "error": error}]


def serve(measure: Callable[[dict[str, Any]], list[dict[str, Any]]]) -> None:
    """Serve a request of `rows_of`: measure, and write the rows."""
    settings, output = json.loads(sys.argv[1]), Path(sys.argv[2])
    limit_threads(settings["threads"])
    output.write_text(json.dumps(measure(settings)))
