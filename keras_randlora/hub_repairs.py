"""What keras-hub leaves out of a backbone's configuration, put back while saving."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def complete_config(model: keras.Model) -> Iterator[None]:
    """Make the configuration of a keras-hub model complete for the time of the block.

    `Llama3Backbone.get_config` of keras-hub 0.32 forgets `tie_word_embeddings`, so
    that a saved model with tied embeddings (Llama 3.2, SmolLM2) does not load: it
    comes back with an output matrix of its own, for which the file has no values.
    """
    backbone = getattr(model, "backbone", model)
    embedding = getattr(backbone, "token_embedding", None)
    arguments = inspect.signature(type(backbone).__init__).parameters
    if (
        not isinstance(embedding, keras.layers.ReversibleEmbedding)
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
