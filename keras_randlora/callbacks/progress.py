"""What callbacks ask of a model in training, and what they print."""

import keras

from keras_randlora.tools import hosts_of, to_numpy


def writes(model: keras.Model) -> bool:
    """Whether this is the process that writes files of a model."""
    return hosts_of(model.variables).writes


def say(model: keras.Model, text: str) -> None:
    """Print a line once, however many processes hold a model."""
    if writes(model):
        print(text, flush=True)


def steps(model: keras.Model) -> int:
    """Return the number of steps of a model's optimizer."""
    return int(to_numpy(model.optimizer.iterations)) if model.compiled else 0
