"""Embeddings that a language model also computes its logits with."""

from __future__ import annotations

import keras


def is_reversible(layer: keras.layers.Layer) -> bool:
    """Return whether a layer is a `ReversibleEmbedding`, of Keras or of keras-hub.

    keras-hub 0.25.0 has its own class, later ones derive from that of Keras.
    """
    own = isinstance(layer, keras.layers.Embedding) and hasattr(layer, "tie_weights")
    return own or isinstance(layer, keras.layers.ReversibleEmbedding)
