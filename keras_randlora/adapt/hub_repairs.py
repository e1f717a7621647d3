"""Backbones of keras-hub, and workarounds for it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import keras

from keras_randlora.tools import is_reversible


def backbone_of(model: keras.Model) -> keras.Model:
    """Return the backbone of a keras-hub task; any other model itself.

    A backbone may hold one of its own: D-FINE keeps its HGNetV2 as `backbone`.
    """
    if hasattr(model, "default_lora_layer_names"):
        return model
    return getattr(model, "backbone", model)


@contextlib.contextmanager
def complete_config(model: keras.Model) -> Iterator[None]:
    """Complete the configuration of a keras-hub model inside a block.

    `Llama3Backbone.get_config` of keras-hub 0.32 omits `tie_word_embeddings`. A saved
    model with tied embeddings (Llama 3.2, SmolLM2) then fails to load: it gets its own
    output matrix, for which the file has no values.
    """
    backbone = backbone_of(model)
    embedding: Any = getattr(backbone, "token_embedding", None)
    arguments = inspect.signature(type(backbone).__init__).parameters
    if (
        not is_reversible(embedding)
        or "tie_word_embeddings" not in arguments
        or "tie_word_embeddings" in backbone.get_config()
    ):
        yield
        return
    config = {**backbone.get_config(), "tie_word_embeddings": embedding.tie_weights}
    object.__setattr__(backbone, "get_config", lambda: dict(config))
    try:
        yield
    finally:
        object.__delattr__(backbone, "get_config")


def accept_tokens() -> None:
    """Let `fit` and `evaluate` of keras-hub's tasks take batches of tokens.

    keras-hub 0.32 hands every batch to the preprocessor of a task, which takes text
    only. A batch with `token_ids` now passes it by. A second call changes nothing.
    """
    import keras_hub

    task = keras_hub.models.Task
    former = task.preprocess_samples
    if former.__module__ == __name__:
        return

    def preprocess_samples(
        self: Any, x: Any, y: Any = None, sample_weight: Any = None
    ) -> Any:
        if isinstance(x, dict) and "token_ids" in x:
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        return former(self, x, y, sample_weight)

    task.preprocess_samples = preprocess_samples
