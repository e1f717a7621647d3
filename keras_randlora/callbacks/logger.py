"""The callback that logs the size of the updates during training."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_randlora.adapt import Site, adapted_state
from keras_randlora.analysis import effective_rank, update_matrix
from keras_randlora.callbacks.clock import EPOCH, Clock, checked_frequency
from keras_randlora.callbacks.progress import steps, writes
from keras_randlora.layers import dense_kernel
from keras_randlora.tools import to_numpy


class UpdateRecord(NamedTuple):
    """The update of one layer at one moment of training.

    Attributes:
        step: Steps of the optimizer so far.
        path: The layer's address, as in `get_adapter`.
        norm: Frobenius norm of the update.
        relative_norm: The same ÷ the norm of the frozen kernel.
        effective_rank: Effective rank of the update; see `analysis.effective_rank`.
    """

    step: int
    path: str
    norm: float
    relative_norm: float
    effective_rank: float


class RandLoRALogger(keras.callbacks.Callback):
    """Logs the norm and the effective rank of the updates during training.

    Adds `update_norm` (Frobenius, of all updates together), `relative_update_norm`
    (the same ÷ the norm of the frozen kernels) and `effective_rank` (mean over the
    layers) to the logs of each epoch, for `History`, `CSVLogger`, `TensorBoard` or W&B
    if they come after this callback. The values of each layer go to `records` and, with
    `log_dir`, to TensorBoard.

    A layer with sides `l ≥ s` takes `2 · l · s²` operations on the host, and some
    more for the eigenvalues of an `s × s` matrix.

    Args:
        log_dir: A folder for TensorBoard, which needs the package `tensorboard`; by
            default nothing is written.
        every: `"epoch"`, or a number of batches.

    Attributes:
        records: An `UpdateRecord` for each layer and moment.

    Raises:
        ValueError: `every` is out of range; when training begins: the model is not
            adapted.
        TypeError: `every` is neither `"epoch"` nor an integer.
        ImportError: `log_dir` is given and `tensorboard` is not installed.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> model.compile(keras.optimizers.AdamW(1e-3), "mse")
    >>> logger = kr.RandLoRALogger()
    >>> x, y = np.ones((8, 6)), np.zeros((8, 4))
    >>> history = model.fit(x, y, epochs=2, verbose=0, callbacks=[logger])
    >>> [name for name in history.history if name != "loss"]
    ['update_norm', 'relative_update_norm', 'effective_rank']
    >>> [(record.step, record.path) for record in logger.records]
    [(1, 'd'), (2, 'd')]
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        every: str | int = EPOCH,
    ) -> None:
        super().__init__()
        self.log_dir = log_dir
        self.every = checked_frequency("every", every)
        self.records: list[UpdateRecord] = []
        self._make_writer = None if log_dir is None else _tensorboard_writer()
        self._writer: Any = None
        self._kernel_norms: dict[str, float] = {}
        self._latest: list[UpdateRecord] = []
        self._clock = Clock(self.every)

    def on_train_begin(self, logs: Any = None) -> None:
        """Compute the norms of the frozen kernels."""
        self._latest = []  # another optimizer counts its own steps
        if self._make_writer and not self._writer and writes(self.model):
            self._writer = self._make_writer(str(self.log_dir))
        self._kernel_norms = {
            site.address: _norm(dense_kernel(site.layer)) for site in self._sites()
        }

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Restart the count of batches."""
        self._clock.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Measure if a period has ended."""
        if self._clock.is_due(batch):
            self._measure()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure and add the summary to the epoch's logs."""
        measured = self._measure()
        if logs is None:
            return
        norm = float(np.linalg.norm([record.norm for record in measured]))
        logs["update_norm"] = norm
        logs["relative_update_norm"] = _ratio(
            norm, float(np.linalg.norm([*self._kernel_norms.values()]))
        )
        logs["effective_rank"] = float(np.mean([r.effective_rank for r in measured]))

    def on_train_end(self, logs: Any = None) -> None:
        """Flush the values for TensorBoard."""
        if self._writer is not None:
            self._writer.flush()

    def _sites(self) -> list[Site]:
        return adapted_state(self.model).selection.adapted

    def _measure(self) -> list[UpdateRecord]:
        step = steps(self.model)
        if self._latest and self._latest[0].step == step:
            return self._latest
        measured = []
        for site in self._sites():
            update = update_matrix(site.layer)
            norm = _norm(update)
            relative = _ratio(norm, self._kernel_norms[site.address])
            rank = effective_rank(update)
            measured.append(UpdateRecord(step, site.address, norm, relative, rank))
        self._latest = measured
        self.records += measured
        if self._writer is not None:
            for record in measured:
                for name in ("norm", "relative_norm", "effective_rank"):
                    tag = f"randlora/{name}/{record.path}"
                    self._writer.add_scalar(tag, getattr(record, name), step)
        return measured


def _tensorboard_writer() -> Any:
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise ImportError(
            "`RandLoRALogger` writes to `log_dir` with the package tensorboard, which "
            "is not installed: pip install tensorboard."
        ) from error
    return Writer


def _norm(array: Any) -> float:
    values = np.asarray(to_numpy(array), "float64")
    return float(np.linalg.norm(values.ravel()))


def _ratio(part: float, whole: float) -> float:
    return part / max(whole, float(np.finfo("float32").tiny))
