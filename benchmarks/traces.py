"""Time by operation, from the traces of torch, JAX and TensorFlow."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

# Threads that run operations, in the traces of JAX and TensorFlow on a CPU.
_RUNNING = re.compile(r"tf_(Compute|XLAEigen|XLAPjRt)")


def milliseconds(run: Callable[[], None], backend: str) -> dict[str, float]:
    """Return the milliseconds of each operation of `run`, longest first.

    On torch they are those of the main thread, on JAX and TensorFlow the sum over the
    threads that run operations. The time of a nested operation counts for the inner one
    only.
    """
    spent = _torch(run) if backend == "torch" else _traced(run, backend)
    return {name: spent[name] for name in sorted(spent, key=spent.get, reverse=True)}


def _torch(run: Callable[[], None]) -> dict[str, float]:
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        run()
    return {e.key: e.self_cpu_time_total / 1e3 for e in profiler.key_averages()}


def _traced(run: Callable[[], None], backend: str) -> dict[str, float]:
    import jax

    with tempfile.TemporaryDirectory() as folder:
        if backend == "jax":
            with jax.profiler.trace(folder):
                run()
        else:
            import tensorflow as tf

            with tf.profiler.experimental.Profile(folder):
                run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
        spent: Counter[str] = Counter()
        for plane in profile.planes:
            for line in plane.lines:
                if _RUNNING.match(line.name):
                    for event in line.events:
                        if name := operation(event.name):
                            spent[name] += event.duration_ns / 1e6
    return dict(spent)


def operation(event: str) -> str | None:
    """Return the kind of operation of an event, or `None`.

    TensorFlow names its events `path/of/the/op:MatMul`, XLA `dot.26`.
    """
    if "::" in event or event.startswith("end: "):
        return None
    if ":" in event:
        return event.rpartition(":")[2]
    return re.sub(r"[.\d]+$", "", event) if re.search(r"\.\d+$", event) else None
