"""Keras callbacks that checkpoint the adapter and log update norms.

In: a model that `fit` trains. Out: adapter files, each with its moment of the run;
norms and ranks in the logs of epochs and in TensorBoard.
"""

from keras_randlora.callbacks.checkpoint import RandLoRACheckpoint
from keras_randlora.callbacks.logger import RandLoRALogger, UpdateRecord

__all__ = [
    "RandLoRACheckpoint",
    "RandLoRALogger",
    "UpdateRecord",
]
