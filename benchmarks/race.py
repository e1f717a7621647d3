"""Timing of methods in turn, each in its own process, under the same load."""

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import memory
from benchmarks.cases import REFERENCES, Case
from benchmarks.processes import ROOT, environment

# A worker joins the others while this many times the largest peak so far is free.
HEADROOM = 1.5


class WorkerError(Exception):
    """A worker failed; the message says why."""


class Runner:
    """The parent's end of one worker.

    Attributes:
        case: The case it measures.
        facts: Its answers so far.
        seconds: Its step times, by round.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.facts: dict[str, Any] = {}
        self.seconds: dict[int, float] = {}
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", case.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=environment(case.backend, case.threads, case.device),
        )

    def wait(self) -> None:
        """Wait until the worker has imported its libraries."""
        self._answer()

    def prepare(self) -> None:
        """Let the worker build its model and warm it up."""
        self.facts |= self._ask("prepare")

    def step(self, number: int) -> None:
        """Let the worker step in the round `number`."""
        answer = self._ask("step")
        self.seconds[number] = answer["seconds"]
        self.facts["loss"] = answer["loss"]

    def finish(self) -> None:
        """Ask for the memory's peak and end the worker."""
        self.facts |= self._ask("memory")
        self.stop()

    def stop(self) -> None:
        """End the worker."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def _ask(self, question: str) -> dict[str, Any]:
        try:
            print(question, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # its last answer says why
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._end()}
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _end(self) -> str:
        """Return how a worker ended that says nothing more."""
        status = self._process.wait()
        self._log.seek(0)
        last = self._log.read().strip().splitlines()[-1:]
        return " ".join([f"ended with status {status}.", *last])


def race(cases: list[Case], rounds: int) -> list[dict[str, Any]]:
    """Measure methods against each other.

    Every round steps each method once, one after the other. The references step in
    every round. If memory does not hold all methods at once, the others run in groups,
    so each is still compared within rounds.

    Args:
        cases: Methods of one backend, model and batch.
        rounds: Steps of each method.

    Returns:
        A record for each case, in order.
    """
    runners = [Runner(case) for case in cases]
    try:
        ready = [runner for runner in runners if _did(runner, Runner.wait)]
        always = [r for r in ready if r.case.method in REFERENCES]
        waiting = [r for r in ready if r.case.method not in REFERENCES]
        always = [r for r in always if _did(r, Runner.prepare)]
        numbers = itertools.count()
        while True:
            group = _next_group(waiting, always)
            for number in itertools.islice(numbers, rounds):
                for runner in [*always, *group]:
                    _did(runner, Runner.step, number)
            for runner in group:
                _did(runner, Runner.finish)
            if not waiting:
                break
        for runner in always:
            _did(runner, Runner.finish)
    finally:
        for runner in runners:
            runner.stop()
    return [_record(runner, runners) for runner in runners]


def _next_group(waiting: list[Runner], always: list[Runner]) -> list[Runner]:
    """Take runners from `waiting` and prepare them while memory lasts; one at least."""
    group: list[Runner] = []
    while waiting:
        peaks = [r.facts["first_peak_bytes"] for r in [*always, *group]]
        case = waiting[0].case
        free = memory.of(case.device, case.backend).available()
        if group and free < HEADROOM * max(peaks):
            break
        runner = waiting.pop(0)
        if _did(runner, Runner.prepare):
            group.append(runner)
    return group


def _did(runner: Runner, action: Any, *arguments: Any) -> bool:
    """Let a runner act unless it failed before; a failure is kept in its facts."""
    if "error" not in runner.facts:
        try:
            action(runner, *arguments)
        except WorkerError as error:
            runner.facts["error"] = str(error)
            print(f"{runner.case.method}: {error}", file=sys.stderr)
    return "error" not in runner.facts


def _record(runner: Runner, runners: list[Runner]) -> dict[str, Any]:
    record = {"method": runner.case.method, **runner.facts}
    if runner.seconds and "error" not in record:
        record["seconds"] = list(runner.seconds.values())
        record["median_s"] = statistics.median(runner.seconds.values())
        record["ratios"] = {
            other.case.method: ratio
            for other in runners
            if other.case.method in REFERENCES
            and (ratio := _paired_ratio(runner, other)) is not None
        }
    return record


def _paired_ratio(runner: Runner, reference: Runner) -> float | None:
    """Return the median over the common rounds of this time over the reference's."""
    common = runner.seconds.keys() & reference.seconds.keys()
    if not common:
        return None
    return statistics.median(runner.seconds[n] / reference.seconds[n] for n in common)
