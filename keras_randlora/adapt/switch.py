"""Switch the adapters of a model off and on again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras
import numpy as np

from keras_randlora.adapt.state import adapted_state
from keras_randlora.layers import RandLoRAAdapter
from keras_randlora.tools import in_graph, to_numpy, traced_apart


@contextlib.contextmanager
def base_only(model: keras.Model) -> Iterator[keras.Model]:
    """Run with the adapters off, then on again.

    The outputs are exactly those of the base model (the reference policy of preference
    optimization), and give the adapters no gradient. It can be entered inside a loss,
    in `fit`, `jax.jit` and `tf.function`, and between the forward and the backward
    pass. Biases and layers that are fully trained keep their trained values.

    Raises:
        ValueError: The model is not adapted, or inside such a block already.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> x = np.ones((1, 6))
    >>> _ = model.get_layer("d").randlora.lambda_.assign(np.ones((2, 2)))
    >>> tuned = model.predict_on_batch(x)
    >>> with kr.base_only(model):
    ...     base = model.predict_on_batch(x)
    >>> again = model.predict_on_batch(x)
    >>> bool(np.allclose(base, tuned)), bool(np.allclose(again, tuned))
    (False, True)
    """
    state = adapted_state(model)
    adapters = [site.layer.randlora for site in state.selection.adapted]
    with contextlib.ExitStack() as undo:
        for adapter in adapters:
            undo.callback(setattr, adapter, "active", True)
            adapter.active = False
        undo.enter_context(traced_apart("base_only"))
        if keras.backend.backend() == "tensorflow" and not in_graph():
            for adapter in adapters:
                _set_to_zero(adapter, undo)
        yield model


def _set_to_zero(adapter: RandLoRAAdapter, undo: contextlib.ExitStack) -> None:
    """Switch the update off in functions that TensorFlow has traced before.

    They read λ when they run, and the flag when they are traced. A function traced in
    the block must read λ as well, since it also runs after the block.
    """
    undo.callback(setattr, adapter, "zeroed", False)
    undo.callback(adapter.lambda_.assign, np.array(to_numpy(adapter.lambda_)))
    adapter.lambda_.assign(np.zeros(adapter.lambda_.shape, "float32"))
    adapter.zeroed = True
