"""Processes that hold one model together: who is there, who writes, what all agree on.

JAX runs one program in several processes, each with devices of its own, and an array
may lie on the devices of all. What reads such an array whole, or writes it to a file,
concerns every process: each calls the same verb, one writes, and none goes on before
the file is whole, or as if there were one where the writing failed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_randlora.tools import keras_internals

# How long a process waits for the others to call the same verb, in seconds.
PATIENCE = 600
# How long it waits for those that have: a large model takes its time to write. JAX ends
# all processes where one of them dies.
_A_WEEK = 7 * 24 * 3600
_LONGEST_MESSAGE = 2000
# Meetings that took place; all processes of a meeting count alike.
_MEETINGS = itertools.count()


@dataclass(frozen=True)
class Hosts:
    """The processes that hold some variables together.

    Attributes:
        processes: Their numbers, in order; only this one where it holds all itself.
        here: The number of this one.
    """

    processes: tuple[int, ...] = (0,)
    here: int = 0

    @property
    def alone(self) -> bool:
        """Whether this process holds the variables itself."""
        return len(self.processes) == 1

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files."""
        return self.here == self.processes[0]

    @contextlib.contextmanager
    def together(self, doing: str) -> Iterator[None]:
        """Enter and leave a block with all processes, or with an error.

        What can fail in one of them only comes last in a block: the others know of it
        when they leave.

        Args:
            doing: The verb that each of them calls, for the error.

        Raises:
            RuntimeError: Not all of them came, or the block failed in another one.
        """
        if self.alone:
            yield
            return
        meeting = self._meet(doing)
        try:
            yield
        except BaseException as error:
            # Without waiting: the others may wait for this process elsewhere.
            failure = f"{type(error).__name__}: {error}"[:_LONGEST_MESSAGE]
            self._say(meeting, failure)
            if self.writes:
                self._answer(meeting, [failure])
            raise
        said = zip(self.processes, self._exchange(meeting, ""), strict=False)
        for process, failure in said:
            if failure:
                raise RuntimeError(
                    f"{doing} failed in process {process}, and with it in all "
                    f"{len(self.processes)}: {failure}"
                )

    def told(self, doing: str, text: str) -> str:
        """Return the text of the process that writes, in all of them.

        Raises:
            RuntimeError: Not all of them came.
        """
        return text if self.alone else self._exchange(self._meet(doing), text)[0]

    def require_same(self, doing: str, content: Any, what: str) -> None:
        """Check that all processes pass the same.

        Args:
            doing: The verb that each of them calls.
            content: Bytes, or pairs of a name and an array.
            what: What is passed, for the error.

        Raises:
            ValueError: They do not.
            RuntimeError: Not all of them came.
        """
        if self.alone:
            return
        said = self._exchange(self._meet(doing), _digest(content))
        others = self._unlike(said)
        if others:
            raise ValueError(
                f"{doing} was given {what} in process {others[0]} that differs from "
                f"that in process {self.processes[0]}. Every process must pass the "
                "same."
            )

    def require_same_files(self, doing: str, paths: Sequence[Path]) -> None:
        """Check that all processes see the same files, or none of them any.

        Raises:
            FileNotFoundError: Only some of them see one.
            ValueError: They see different ones.
            RuntimeError: Not all of them came.
        """
        if self.alone:
            return
        for path in paths:
            seen = _digest(path.read_bytes()) if path.is_file() else ""
            said = self._exchange(self._meet(doing), seen)
            lacking = [
                p for p, one in zip(self.processes, said, strict=True) if not one
            ]
            if lacking and any(said):
                raise FileNotFoundError(
                    f"'{path}' is not there for process {lacking[0]}, while others "
                    "see it. Every host reads the file: put it into a folder that all "
                    "share, or copy it to each."
                )
            if others := self._unlike(said):
                raise ValueError(
                    f"'{path}' is another file for process {others[0]} than for "
                    f"process {self.processes[0]}. Copy the same one to every host, "
                    "or put it into a folder that all share."
                )

    def _unlike(self, said: list[str]) -> list[int]:
        """Return the processes that say other things than the first one."""
        pairs = zip(self.processes, said, strict=True)
        return [process for process, one in pairs if one != said[0]]

    def _meet(self, doing: str) -> str:
        """Wait until every process has come, and return a name for the meeting."""
        try:
            keras_internals.coordinator().wait_at_barrier(
                f"keras_randlora: {doing}", PATIENCE * 1000, list(self.processes)
            )
        except RuntimeError as error:
            raise RuntimeError(
                f"{doing} is for all {len(self.processes)} processes that hold the "
                f"model together, and not all came within {PATIENCE} seconds. Call it "
                "in every process, without asking for `jax.process_index()`: one of "
                "them writes."
            ) from error
        return f"keras_randlora/{self.processes[0]}/{next(_MEETINGS)}"

    def _exchange(self, meeting: str, text: str) -> list[str]:
        """Return what each process says, in order."""
        if not self.writes:
            self._say(meeting, text)
            return self._listen(meeting)
        said = [text]
        for process in self.processes[1:]:
            said.append(_heard(key := f"{meeting}/{process}"))
            keras_internals.coordinator().key_value_delete(key)
        self._answer(meeting, said)
        return said

    def _say(self, meeting: str, text: str) -> None:
        if not self.writes:
            key = f"{meeting}/{self.here}"
            keras_internals.coordinator().key_value_set(key, json.dumps(text))

    def _answer(self, meeting: str, said: list[str]) -> None:
        client = keras_internals.coordinator()
        client.key_value_set(f"{meeting}/all", json.dumps(said))

    def _listen(self, meeting: str) -> list[str]:
        found: list[str] = _heard(f"{meeting}/all")
        return found


def hosts_of(variables: Iterable[keras.Variable], *, divided: bool = False) -> Hosts:
    """Return the processes that hold variables together.

    Args:
        variables: Variables of a model.
        divided: Whether to count only what lies in parts, so that no process can read
            it alone.
    """
    if keras.backend.backend() != "jax":
        return Hosts()
    import jax

    here = jax.process_index()
    if jax.process_count() == 1:
        return Hosts((here,), here)
    found = {here}
    for variable in variables:
        array = variable.value
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            if not (divided and array.is_fully_replicated):
                found |= {device.process_index for device in array.sharding.device_set}
    return Hosts(tuple(sorted(found)), here)


def _heard(key: str) -> Any:
    client = keras_internals.coordinator()
    return json.loads(client.blocking_key_value_get(key, _A_WEEK * 1000))


def _digest(content: Any) -> str:
    digest = hashlib.sha256()
    if isinstance(content, bytes):
        digest.update(content)
    else:
        for name, array in content:
            digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()
