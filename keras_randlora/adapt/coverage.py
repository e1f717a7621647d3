"""Coverage: the adapted share of the weights used in matmuls.

Kernels of linear layers and convolutions count, and bare weights with two or more axes.
Weights that are looked up or added (embeddings, positions, norms, tokens, biases,
tables) and the routers of experts, which are targets by name only, do not count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import keras

from keras_randlora.adapt.hub_weights import is_router, not_multiplied
from keras_randlora.adapt.sites import Site
from keras_randlora.layers import (
    HeldWeight,
    LinearWeight,
    RandLoRALayer,
    is_convolution_in_groups,
    is_linear,
    kernel_shape,
    own_class_of,
)
from keras_randlora.tools import keras_internals

_LOOKED_UP = re.compile("Embed|Position|Norm|Token|Quantizer")
_ADDED = re.compile("bias|embed|mask|position|probe|query_tokens|scale|table|token")


def multiplied(everything: Sequence[Site]) -> dict[str, int]:
    """Return the number of entries of the weights used in matmuls, by address.

    Args:
        everything: The layers of a model, and their bare weights.
    """
    counts = {site.address: _entries(site) for site in everything}
    return {address: count for address, count in counts.items() if count}


def share_adapted(everything: Sequence[Site]) -> float:
    """Return the adapted share of the weights used in matmuls, 1 for all.

    Args:
        everything: The layers of a model, and their bare weights.
    """
    counts = multiplied(everything)
    reached = sum(
        counts.get(site.address, 0)
        for site in everything
        if isinstance(site.layer, RandLoRALayer)
    )
    return reached / sum(counts.values())


def _entries(site: Site) -> int:
    """Return the number of entries of a layer's own weights used in matmuls."""
    layer = site.layer
    if not layer.built:
        return 0
    if isinstance(layer, HeldWeight):
        return math.prod(kernel_shape(layer)) if _is_multiplied(layer) else 0
    if is_convolution_in_groups(layer):
        own = keras_internals.own_variables(layer)
        return sum(math.prod(v.shape) for v in own if len(v.shape) > 1)
    if not is_linear(layer) or is_router(site.ancestors[-1], layer):
        return 0
    return math.prod(kernel_shape(layer))


def _is_multiplied(weight: HeldWeight) -> bool:
    if isinstance(weight, LinearWeight):
        return True
    if is_convolution_in_groups(weight.holder()):
        return False  # counted with the convolution
    kind = own_class_of(weight.holder())
    named = f"{weight.attribute} {weight.name}".lower()
    return not (
        weight.attribute in not_multiplied(kind)
        or issubclass(kind, keras.layers.Embedding)
        or _LOOKED_UP.search(kind.__name__)
        or _ADDED.search(named)
    )
