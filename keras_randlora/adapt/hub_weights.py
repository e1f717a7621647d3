"""Tables of the bare weights in keras-hub's layers, and of its routers.

`integration_tests/test_hub_weights.py` compares each table with the source of the
installed keras-hub.
"""

from __future__ import annotations

from typing import Any

import keras

_GATED = {
    "_expert_feedforward_gate_dense": "batch in out",
    "_expert_feedforward_output_dense": "batch in out",
}
_LOW_RANK = dict.fromkeys(("a1", "a2", "g1", "g2", "v1", "v2", "w1", "w2"), "in out")

# By class: the role of each axis of the weights that its code uses in matmuls.
MULTIPLIED: dict[str, dict[str, str]] = {
    "Gemma4AudioRelativePositionEmbedding": {"pos_proj": "in out"},
    "Gemma4MoEBlock": dict.fromkeys(
        ("gate_proj", "up_proj", "down_proj"), "batch in out"
    ),
    "GptOssExperts": dict.fromkeys(("gate_up_proj", "down_proj"), "batch in out"),
    "MixtralMoeExperts": {
        **_GATED,
        "_expert_feedforward_intermediate_dense": "batch in out",
    },
    "Qwen3MoeExperts": _GATED,
    "Qwen3_5MoeExperts": _GATED,
    "QwenMoeExperts": _GATED,
    "RWKV7TimeMix": _LOW_RANK,
}

# By class: the layers that choose among experts.
ROUTERS: dict[str, tuple[str, ...]] = {
    "Gemma4Router": ("proj",),
    "GptOssTopKRouter": ("router_dense",),
    "MixtralSparseMoeBlock": ("sparse_feedforward_gate_dense",),
    "Qwen3SparseMoeBlock": ("sparse_feedforward_gate_dense",),
    "Qwen3_5MoeSparseMoeBlock": ("router_gate",),
    "QwenSparseMoeBlock": ("sparse_feedforward_gate_dense",),
}

# By class: weights of two or more axes that are looked up, added, or multiplied entry
# by entry. Layers of embeddings and positions need no entry, see `coverage`.
NOT_MULTIPLIED: dict[str, tuple[str, ...]] = {
    "GptOssExperts": ("gate_up_proj_bias", "down_proj_bias"),
    "RWKV7TimeMix": ("r_k",),
    "VectorQuantizerEMA": ("embeddings", "ema_w"),
    "WindowAttention": ("relative_position_bias_table",),
    "XLNetEncoder": (
        "content_attention_bias",
        "positional_attention_bias",
        "segment_attention_bias",
        "segment_encoding",
    ),
}


def axes_of(holder: type[keras.layers.Layer]) -> dict[str, str]:
    """Return the roles of the axes of the weights that a class uses in matmuls."""
    return _of(holder, MULTIPLIED, {})


def is_router(holder: keras.layers.Layer, layer: keras.layers.Layer) -> bool:
    """Return whether a layer chooses among the experts of its holder."""
    return layer.name in _of(type(holder), ROUTERS, ())


def not_multiplied(holder: type[keras.layers.Layer]) -> tuple[str, ...]:
    """Return the attributes of weights that a class does not use in matmuls."""
    return _of(holder, NOT_MULTIPLIED, ())


def _of(kind: type, table: dict[str, Any], default: Any) -> Any:
    """Return the entry of a keras-hub class, or of a class that it derives from."""
    for base in kind.__mro__:
        if base.__name__ in table and base.__module__.startswith("keras_hub."):
            return table[base.__name__]
    return default
