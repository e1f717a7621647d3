"""Embeddings that a language model also computes its logits with."""

from __future__ import annotations

import keras


def is_reversible(layer: keras.layers.Layer) -> bool:
    """Return whether a layer is a `ReversibleEmbedding`, of Keras or of keras-hub.

    keras-hub 0.25.0 has its own class, later ones derive from that of Keras.
    """
    return is_hubs_own(layer) or isinstance(layer, keras.layers.ReversibleEmbedding)


def is_hubs_own(layer: keras.layers.Layer) -> bool:
    """Return whether a layer is a `ReversibleEmbedding` of keras-hub 0.25.0.

    It can be quantized to `"int8"` only.
    """
    return isinstance(layer, keras.layers.Embedding) and hasattr(layer, "tie_weights")
