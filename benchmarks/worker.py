"""Worker process for one method: `python -m benchmarks.worker CASE`.

`benchmarks.race` starts it and sends requests; requests and answers are JSON lines.
`prepare` builds the model and warms it up, `step` trains one step, `memory` returns the
peak.
"""

import json
import os
import sys
import time
import traceback
from typing import Any

from benchmarks import memory
from benchmarks.cases import Case
from benchmarks.processes import limit_threads, one_line

WARM_UP_STEPS = 2


class Worker:
    """Answers the requests of the parent."""

    def __init__(self, case: Case) -> None:
        # The imports take seconds; the parent lets all workers do them at once.
        from benchmarks import session

        if not case.is_peft:
            import keras_hub  # noqa: F401

        session.require_device(case)
        self.case, self._open = case, session.open_session
        self._memory = memory.of(case.device, case.backend)

    def prepare(self) -> dict[str, Any]:
        """Build the model, take the first steps, and settle the memory."""
        self.session = self._open(self.case)
        self.before = self._memory.settle()
        first_loss, first_seconds = self._timed_step()
        for _ in range(WARM_UP_STEPS - 1):
            self._timed_step()
        answer = {
            "trainable": self.session.trainable(),
            "operations": self.session.operations()._asdict(),
            "traffic_bytes": self._traffic(),
            "first_step_s": first_seconds,
            "first_loss": first_loss,
            "first_peak_bytes": self._memory.peak(),
        }
        self._memory.settle()
        return answer

    def step(self) -> dict[str, Any]:
        """Take one step, then return freed memory for the other processes."""
        loss, seconds = self._timed_step()
        self._memory.release()
        return {"seconds": seconds, "loss": loss}

    def memory(self) -> dict[str, Any]:
        """Return the peak of the steps since `prepare`."""
        return {"before_bytes": self.before, "peak_bytes": self._memory.peak()}

    def _traffic(self) -> int | None:
        """Take a step and return the bytes that it moves, `None` if none can count."""
        if self.case.backend != "torch":
            return None
        from benchmarks import traffic

        return traffic.of_step(self.session.step)

    def _timed_step(self) -> tuple[float, float]:
        started = time.perf_counter()
        loss = self.session.step()
        return loss, time.perf_counter() - started


def main() -> None:
    """Answer until the parent sends no more requests."""
    case = Case.from_json(sys.argv[1])
    limit_threads(case.threads)
    # Output of libraries goes to stderr: stdout is for the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        worker = Worker(case)
        print(json.dumps({"ready": True}), file=answers, flush=True)
        for question in sys.stdin:
            answer = getattr(worker, question.strip())()
            print(json.dumps(answer), file=answers, flush=True)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": one_line(error)}), file=answers, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
