"""States of the random generators that training changes.

Keras keeps a state for each generator of a model. On torch `Dropout` uses torch's own
generators instead, whatever its seed (`keras/src/backend/torch/random.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_randlora.tools import keras_internals
from keras_randlora.tools.shards import assign, to_numpy

_TORCH, _CUDA = "torch", "cuda"


def random_states(model: keras.layers.Layer) -> dict[str, np.ndarray]:
    """Return the states of a model's random generators, by name.

    `0`, `1`, … are those of Keras in the model's order, `torch` and `cuda` those of
    torch. A model without generators has none.
    """
    own = keras_internals.seed_states(model)
    states = {str(i): np.array(to_numpy(state)) for i, state in enumerate(own)}
    if own and keras.backend.backend() == "torch":
        import torch

        states[_TORCH] = torch.get_rng_state().numpy().copy()
        if torch.cuda.is_available():
            states[_CUDA] = torch.cuda.get_rng_state().numpy().copy()
    return states


def set_random_states(model: keras.layers.Layer, states: Mapping[str, Any]) -> None:
    """Set what `random_states` returned, also on another backend.

    Raises:
        ValueError: The model has another number of generators. Nothing is changed.
    """
    own = keras_internals.seed_states(model)
    count = sum(name.isdecimal() for name in states)
    if count != len(own):
        raise ValueError(f"it has {len(own)} random generators, not {count}")
    for i, state in enumerate(own):
        assign(state, states[str(i)])
    if _TORCH in states and keras.backend.backend() == "torch":
        import torch

        torch.set_rng_state(torch.tensor(states[_TORCH]))
        if _CUDA in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(torch.tensor(states[_CUDA]))
