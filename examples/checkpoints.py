"""Checkpoints of `randlora_finetuning.py`, written atomically.

A checkpoint is a folder `checkpoint-STEP` with the trained values, the state of the
optimizer, and the progress of the run.
"""

import argparse
import dataclasses
import json
import math
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from command_line import UserError, user_choices

ADAPTER, OPTIMIZER, PROGRESS = "adapter.safetensors", "optimizer.safetensors", "at.json"


@dataclasses.dataclass
class Progress:
    """Progress of a run, saved in a checkpoint beside the trained values.

    Attributes:
        step: Optimizer steps taken.
        training: The loss of each step, in nats per token.
        validation: Steps taken and loss of each evaluation.
        best: The lowest validation loss after training began.
        waited: Evaluations since then.
        seconds: Time spent training, including that before an interruption.
        answers: What the model answered before training.
    """

    step: int = 0
    training: list[float] = dataclasses.field(default_factory=list)
    validation: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    best: float = math.inf
    waited: int = 0
    seconds: float = 0.0
    answers: list[str] = dataclasses.field(default_factory=list)


class Interruption:
    """Lets Ctrl-C, or SIGTERM, stop training after a step; a second one stops at once.

    Attributes:
        asked: Whether a signal has come.
    """

    def __init__(self) -> None:
        self.asked = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        while self._former:
            signal.signal(*self._former.popitem())

    def _stop(self, *_: object) -> None:
        self.asked = True
        self.__exit__()
        print("\nInterrupted: the step is finished and a checkpoint saved.", flush=True)

    def callback(self, passes: int) -> Any:
        """Return a callback that stops training after a step of several passes."""
        import keras

        def stop(batch: int, logs: Any) -> None:
            if self.asked and (batch + 1) % passes == 0:
                callback.model.stop_training = True

        callback = keras.callbacks.LambdaCallback(on_train_batch_end=stop)
        return callback


def save_checkpoint(
    model: Any,
    progress: Progress,
    settings: dict,
    options: argparse.Namespace,
    *,
    finished: bool = False,
) -> None:
    """Save a checkpoint atomically, and delete the former one."""
    former = checkpoints(options.output_dir)
    place = options.output_dir / f"checkpoint-{progress.step}"
    if place in former:
        return
    partial = options.output_dir / ".checkpoint"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_adapter(model, partial / ADAPTER, options)
    if options.use_lora:
        save_variables(model.optimizer.variables, partial / OPTIMIZER)
    else:
        import keras_randlora as kr

        kr.save_optimizer(model, partial / OPTIMIZER)
    content = {
        "settings": settings,
        "finished": finished,
        "progress": dataclasses.asdict(progress),
    }
    (partial / PROGRESS).write_text(json.dumps(content) + "\n")
    partial.rename(place)
    for folder in former:
        shutil.rmtree(folder)


def require_same(folder: Path, settings: dict) -> None:
    """Check that a checkpoint has these settings."""
    known = _content(folder)["settings"]
    for name, value in settings.items():
        found = known.get(name)
        if found != value:
            raise UserError(
                f"--resume needs the options of the interrupted run, which had "
                f"{name}={found!r}. Received: {name}={value!r}."
            )


def restore(folder: Path, model: Any, options: argparse.Namespace) -> Progress:
    """Load adapter and optimizer into a compiled model; return the progress."""
    import keras_randlora as kr

    with user_choices():
        if options.use_lora:
            model.optimizer.build(model.trainable_variables)
            load_variables(model.trainable_variables, folder / ADAPTER)
            load_variables(model.optimizer.variables, folder / OPTIMIZER)
        else:
            kr.load_adapter(model, folder / ADAPTER)
            kr.load_optimizer(model, folder / OPTIMIZER)
    progress = Progress(**_content(folder)["progress"])
    progress.validation = [tuple(point) for point in progress.validation]
    return progress


def _content(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint records of its run."""
    return json.loads((folder / PROGRESS).read_text())


def find_checkpoint(options: argparse.Namespace) -> Path | None:
    """Return the checkpoint to resume from, `None` for a new run."""
    found = checkpoints(options.output_dir)
    if options.resume and not found:
        raise UserError(f"--resume: there is no checkpoint in {options.output_dir}.")
    if options.resume:
        return found[-1]
    if found and not _content(found[-1])["finished"]:
        raise UserError(
            f"{found[-1]} is of an interrupted run: pass --resume to continue it, or "
            "another --output_dir."
        )
    return None


def remove_checkpoints(output: Path) -> None:
    """Delete the checkpoints of a finished run, which a new one replaces."""
    for folder in checkpoints(output):
        shutil.rmtree(folder)


def checkpoints(output: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, the latest last."""
    found = output.glob("checkpoint-*")
    return sorted(found, key=lambda folder: int(folder.name.rpartition("-")[2]))


def save_adapter(model: Any, path: Path, options: argparse.Namespace) -> None:
    """Save the trained values."""
    import keras_randlora as kr

    if options.use_lora:
        save_variables(model.trainable_variables, path)
    else:
        kr.save_adapter(model, path)


def save_variables(variables: Sequence[Any], path: Path) -> None:
    """Write variables in their order; kr's own files are for RandLoRA only."""
    import keras
    from safetensors.numpy import save

    from keras_randlora.tools import write_atomically

    names = (f"{i}/{variable.path}" for i, variable in enumerate(variables))
    arrays = map(keras.ops.convert_to_numpy, variables)
    write_atomically(path, save(dict(zip(names, map(np.array, arrays), strict=True))))


def load_variables(variables: Sequence[Any], path: Path) -> None:
    """Set what `save_variables` wrote."""
    from safetensors.numpy import load_file

    arrays = load_file(path)
    for i, variable in enumerate(variables):
        variable.assign(arrays[f"{i}/{variable.path}"])
