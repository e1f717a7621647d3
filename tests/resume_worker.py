"""Trains in processes of its own for `test_resume.py`: one phase a process.

Usage: python resume_worker.py MODEL PHASE FOLDER, where the phases are in this order

- `train`: train 2N steps in one go, and save what each way of resuming needs after N;
- `killed`: train under `BackupAndRestore` and die of SIGKILL in the middle;
- `resume`: restore in each way, train the other N steps, and write the results.
"""

import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import quick_tracing
from keras import ops
from models import EXAMPLES, compile_model

import keras_randlora as kr

MODELS = ("mlp", "llama3")
STEPS = 3
OPTIONS = dict(rank=3, targets="all-linear", train_bias="adapted")


def adapted(name):
    """Return an adapted, compiled model, the same in every process."""
    model = EXAMPLES[name].build()
    model.enable_randlora(**OPTIONS)
    compile_model(model)
    return model


def fit(name, model, first, last, callbacks=()):
    """Train one step an epoch and return the losses."""
    example = EXAMPLES[name]
    history = model.fit(
        example.inputs(),
        example.labels(),
        initial_epoch=first,
        epochs=last,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )
    return history.history["loss"]


def record(path, model, losses):
    """Write every variable, the optimizer's state and the losses."""
    arrays = {f"weight {i} {v.path}": v for i, v in enumerate(model.weights)}
    arrays |= {f"optimizer {i}": v for i, v in enumerate(model.optimizer.variables)}
    arrays = {name: ops.convert_to_numpy(value) for name, value in arrays.items()}
    np.savez(path, losses=np.array(losses), **arrays)


class DieInTheMiddle(keras.callbacks.Callback):
    """Sends SIGKILL to its own process one step after the last backup."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == STEPS:
            os.kill(os.getpid(), signal.SIGKILL)


def train(name, folder):
    """Train in one go; on the way save in three ways."""
    model = adapted(name)
    checkpoint = keras.callbacks.ModelCheckpoint(
        str(folder / "checkpoint.weights.h5"), save_weights_only=True
    )
    fit(name, model, 0, STEPS, [checkpoint])
    model.save_weights(folder / "saved.weights.h5")
    kr.save_adapter(model, folder / "adapter.safetensors")
    kr.save_optimizer(model, folder / "optimizer.safetensors")
    record(folder / "one_go", model, fit(name, model, STEPS, 2 * STEPS))


def killed(name, folder):
    """Die after N steps."""
    backup = keras.callbacks.BackupAndRestore(str(folder / "backup"))
    fit(name, adapted(name), 0, 2 * STEPS, [backup, DieInTheMiddle()])


def resume(name, folder):
    """Restore in each way and train to the end."""
    for way, restore in RESTORE.items():
        losses, model = restore(name, folder)
        record(folder / way, model, losses[-STEPS:])


def from_weights(file):
    """Return the way that loads a weights file into an adapted model."""

    def restore(name, folder):
        model = adapted(name)
        model.optimizer.build(model.trainable_variables)
        model.load_weights(folder / file)
        return fit(name, model, STEPS, 2 * STEPS), model

    return restore


def from_backup(name, folder):
    """Let `BackupAndRestore` go on where the killed run stopped."""
    model = adapted(name)
    backup = keras.callbacks.BackupAndRestore(str(folder / "backup"))
    return fit(name, model, 0, 2 * STEPS, [backup]), model


def from_adapter(name, folder):
    """Load the adapter and the optimizer's state into a fresh base."""
    model = EXAMPLES[name].build()
    kr.load_adapter(model, folder / "adapter.safetensors")
    compile_model(model)
    kr.load_optimizer(model, folder / "optimizer.safetensors")
    return fit(name, model, STEPS, 2 * STEPS), model


RESTORE = {
    "save_weights": from_weights("saved.weights.h5"),
    "model_checkpoint": from_weights("checkpoint.weights.h5"),
    "backup_and_restore": from_backup,
    "adapter_and_optimizer": from_adapter,
}


PHASES = {phase.__name__: phase for phase in (train, killed, resume)}

if __name__ == "__main__":
    if keras.backend.backend() == "tensorflow":
        quick_tracing.build_optimizers_first()
    model_name, phase_name, place = sys.argv[1:]
    PHASES[phase_name](model_name, Path(place))
