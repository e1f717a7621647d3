"""The callback that saves the adapter during training."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_randlora.adapt import adapted_state
from keras_randlora.callbacks.clock import EPOCH, Clock, checked_frequency
from keras_randlora.callbacks.progress import say, steps, writes
from keras_randlora.files import (
    Moment,
    Rule,
    SavedAdapter,
    checked_suffix,
    matching,
    metadata_of,
    read_moment,
    require_finite,
    save_adapter_of,
    save_optimizer,
)
from keras_randlora.tools import (
    Hosts,
    hosts_of,
    local_path,
    one_of,
    positive_integer,
    to_numpy,
)

MODES = ("auto", "min", "max")
OPTIMIZER_SUFFIX = ".optimizer.safetensors"
# Parts of the names of metrics for which smaller is better, and larger.
_SMALL = ("loss", "error", "perplexity", "mae", "mse", "divergence")
_LARGE = ("acc", "auc", "precision", "recall", "f1", "iou", "bleu", "rouge")


class RandLoRACheckpoint(keras.callbacks.Callback):
    """Saves the adapter, and nothing else, after each epoch or some steps.

    Unlike `keras.callbacks.ModelCheckpoint` it saves λ, γ and other trained variables:
    megabytes instead of the model. A crash leaves the former file whole. The file holds
    the current values; with `use_ema=True` it holds averages only if
    `keras.callbacks.SwapEMAWeights(swap_on_epoch=True)` comes before.

    Each file records its epoch, step and value of `monitor`. A resumed run (its
    optimizer has made steps, its update is not zero, or `initial_epoch` is passed)
    counts the existing files of `path`: the best so far stays the best. A new run
    counts its own files only.

    Args:
        path: The adapter's file, ending in `.safetensors`. May have the fields of
            `ModelCheckpoint`: `{epoch}`, counted from 1, `{batch}` if `save_freq` is a
            number, and metrics: `"adapter-{epoch:02d}-{val_loss:.2f}.safetensors"`.
            Missing folders are created.
        monitor: The metric that selects the best adapter.
        mode: Whether the best has the largest (`"max"`) or the smallest value
            (`"min"`); `"auto"` infers it from the metric's name.
        save_best_only: Whether to save only when `monitor` is better than ever before;
            NaN never is.
        keep_last: Number of latest files to keep; older ones, with their optimizer's,
            are deleted after the new one is complete. By default all are kept.
        keep_best: Number of files with the best values of `monitor` to keep, in
            addition to the latest if both are given.
        save_freq: `"epoch"`, or a number of batches.
        with_optimizer: Whether to save the optimizer's state next to the adapter, as
            `NAME.optimizer.safetensors`, to resume with `load_optimizer`.
        initial_value_threshold: With `save_best_only`, the value that `monitor` must
            beat from the start.
        metadata: What each file holds for its user, such as class names: see
            `save_adapter`.
        verbose: 1 to print each saved file.

    Attributes:
        best: The best value of `monitor` so far, `None` before the first.
        latest: The adapter file saved last, `None` before the first.

    Raises:
        ValueError: An argument is out of range, or when training begins the model is
            not adapted.
        TypeError: `save_freq` is neither `"epoch"` nor an integer, or JSON cannot hold
            `metadata`.
        OSError: The file cannot be written.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> model.compile(keras.optimizers.AdamW(1e-3), "mse")
    >>> best = kr.RandLoRACheckpoint("best.safetensors", "loss", save_best_only=True)
    >>> x, y = np.ones((8, 6)), np.zeros((8, 4))
    >>> _ = model.fit(x, y, epochs=2, verbose=0, callbacks=[best])
    >>> kr.load_adapter(model, "best.safetensors").trainable
    12
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        monitor: str = "val_loss",
        *,
        mode: str = "auto",
        save_best_only: bool = False,
        keep_last: int | None = None,
        keep_best: int | None = None,
        save_freq: str | int = EPOCH,
        with_optimizer: bool = False,
        initial_value_threshold: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        self.path = str(checked_suffix(path))
        self.monitor = monitor
        self.save_best_only = save_best_only
        self.save_freq = checked_frequency("save_freq", save_freq)
        self.with_optimizer = with_optimizer
        self.metadata = dict(metadata or {})
        self.verbose = verbose
        self.best = initial_value_threshold
        self.latest: Path | None = None
        one_of("mode", mode, MODES)
        self._judges = save_best_only or keep_best is not None
        self.mode = _direction(monitor, mode) if self._judges else mode
        for name, count in (("keep_last", keep_last), ("keep_best", keep_best)):
            if count is not None:
                _require_field(self.path, name, positive_integer(name, count))
        self._rule = Rule(keep_last, keep_best, small=self.mode == "min")
        self._files: list[SavedAdapter] = []
        self._looked_back = False
        self._epoch = 0
        self._clock = Clock(self.save_freq)

    def on_train_begin(self, logs: Any = None) -> None:
        """Check that there is an adapter to save, and the metadata."""
        adapted_state(self.model)
        metadata_of(self.model, self.metadata)
        self._looked_back = self.latest is not None  # this run's files are known

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remember the epoch for the file's name."""
        self._epoch = epoch
        if not self._looked_back:
            self._looked_back = True
            if epoch or _is_trained(self.model):
                self._look_back()
        self._clock.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save if a period has ended."""
        if self._clock.is_due(batch):
            self._save(logs or {}, batch=batch + 1)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save, unless `save_freq` is a number of batches."""
        if self.save_freq == EPOCH:
            self._save(logs or {})

    def newest(self) -> SavedAdapter | None:
        """Return the newest file of `path`, with its moment.

        Its `moment.epoch` is the `initial_epoch` to resume with. `None` if no file
        records its moment.
        """
        found = self._found()
        return found[-1] if found else None

    def _found(self) -> list[SavedAdapter]:
        """Return the files of `path` that the writing process finds."""
        hosts = hosts_of(self.model.variables) if self.model is not None else Hosts()
        paths = matching(self.path) if hosts.writes else ()
        found = [(str(path), moment) for path in paths if (moment := read_moment(path))]
        told = json.loads(hosts.told("RandLoRACheckpoint", json.dumps(found)))
        files = [SavedAdapter(Path(path), Moment(*moment)) for path, moment in told]
        return sorted(files, key=lambda file: (file.moment.step, file.moment.epoch))

    def _look_back(self) -> None:
        """Count the files of the run that is resumed."""
        self._files = [f for f in self._found() if f.moment.monitor == self.monitor]
        if not self.save_best_only:
            return
        known = self.best
        for file in self._files:
            if file.moment.value is not None:
                self._improved(file.moment.value)
        if self.best != known:
            say(
                self.model,
                f"RandLoRACheckpoint resumes with the best so far: {self.monitor} "
                f"{self.best:g}.",
            )

    def _save(self, logs: Mapping[str, Any], **fields: int) -> None:
        path = self._path(logs, **fields)
        value = self._value(logs)
        if self._judges and value is None:
            warnings.warn(
                f"`RandLoRACheckpoint` monitors '{self.monitor}', which training does "
                f"not report: every adapter is saved. Received: {sorted(logs)}.",
                stacklevel=2,
            )
        elif self.save_best_only and not self._improved(value):
            return
        new = SavedAdapter(path, self._moment(value, within_epoch=bool(fields)))
        others = [file for file in self._files if file.path != path]
        kept = self._rule.kept([*others, new])
        if new not in kept:
            return
        if self.with_optimizer:
            # Before the first of two files that belong together is written.
            require_finite(self.model)
            save_optimizer(self.model, path.with_suffix(OPTIMIZER_SUFFIX))
        save_adapter_of(self.model, path, new.moment, self.metadata)
        self.latest = path
        self._files = [*others, new]
        for file in others:
            if file not in kept:
                self._files.remove(file)
                if writes(self.model):
                    # The adapter last: a resumed run finds the files by it.
                    file.path.with_suffix(OPTIMIZER_SUFFIX).unlink(missing_ok=True)
                    file.path.unlink(missing_ok=True)
        if self.verbose:
            say(self.model, f"\nEpoch {self._epoch + 1}: adapter saved to {path}")

    def _path(self, logs: Mapping[str, Any], **fields: int) -> Path:
        try:
            return local_path(
                self.path.format(**{**logs, "epoch": self._epoch + 1, **fields})
            )
        except KeyError as error:
            raise ValueError(
                f"The path '{self.path}' names {error}, which training does not "
                f"report. Received: {sorted([*logs, *fields, 'epoch'])}."
            ) from error

    def _value(self, logs: Mapping[str, Any]) -> float | None:
        value = logs.get(self.monitor)
        return None if value is None else float(value)

    def _improved(self, value: float | None) -> bool:
        """Whether a value is better than ever."""
        if value is None or math.isnan(value):
            return False
        if self.best is not None:
            if value == self.best or (value < self.best) != (self.mode == "min"):
                return False
        self.best = value
        return True

    def _moment(self, value: float | None, *, within_epoch: bool) -> Moment:
        return Moment(
            epoch=self._epoch if within_epoch else self._epoch + 1,
            step=steps(self.model),
            monitor=self.monitor,
            value=value,
        )


def _is_trained(model: keras.Model) -> bool:
    """Whether a model was trained before, so the run is resumed."""
    adapted = adapted_state(model).selection.adapted
    return steps(model) > 0 or any(
        np.any(to_numpy(site.layer.randlora.lambda_)) for site in adapted
    )


def _require_field(path: str, name: str, count: int) -> None:
    """Check that files can have different names."""
    if "{" not in path:
        raise ValueError(
            f"`{name}` keeps several files, and '{path}' names one only. Put a field "
            f"into it, such as 'adapter-{{epoch:02d}}.safetensors'. Received: "
            f"{name}={count}."
        )


def _direction(monitor: str, mode: str) -> str:
    """Return `"min"` if smaller values of the metric are better, else `"max"`."""
    if mode == "auto":
        small, large = (
            any(part in monitor for part in parts) for parts in (_SMALL, _LARGE)
        )
        if small == large:
            raise ValueError(
                f"The name of the metric '{monitor}' does not tell whether small or "
                "large is better: pass mode='min' or mode='max'. Received: mode='auto'."
            )
        return "min" if small else "max"
    return mode
