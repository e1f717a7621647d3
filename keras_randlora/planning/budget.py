"""Ranks for a given number of trainable parameters."""

from __future__ import annotations

from typing import Any

import keras

from keras_randlora.adapt import select
from keras_randlora.config import LayerOptions, RandLoRAConfig
from keras_randlora.layers import layout_of
from keras_randlora.tools import positive_integer
from keras_randlora.update import KernelLayout, UpdateShape


def rank_for_budget(
    model: keras.Model, parameters: int, targets: Any = None, *, exclude: Any = None
) -> int:
    """Return the rank with the nearest number of trainable parameters.

    Updates are full rank. For a kernel of smaller side `s` a larger rank trains fewer
    parameters: about `s²` at rank 1, `r + s` at rank `r >= s` (between neighbouring
    ranks the count can rise a little). Ranks above the largest `s` are not considered:
    they add parameters, but no rank. Of two ranks that are equally near, the larger one
    is returned.

    Args:
        model: A built, plain model.
        parameters: Number of λ and γ parameters in total.
        targets: As in `enable_randlora`.
        exclude: Likewise.

    Raises:
        ValueError: `parameters` is not positive, or `targets` matches nothing.
        TypeError: `parameters` is not an integer.

    Example:
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
    >>> kr.rank_for_budget(model, 1000, "all-linear")
    4
    """
    parameters = positive_integer("parameters", parameters)
    layouts = _layouts(model, targets, exclude)
    largest = max(min(layout.inputs, layout.outputs) for layout in layouts)
    return min(
        range(largest, 0, -1),
        key=lambda rank: abs(_parameters(layouts, rank) - parameters),
    )


def rank_like_lora(
    model: keras.Model, lora_rank: int, targets: Any = None, *, exclude: Any = None
) -> int:
    """Return the rank that trains about as many parameters as LoRA at `lora_rank`.

    The paper compares the two at equal numbers of parameters. LoRA has
    `lora_rank * (in + out)` for each kernel read as a matrix `(in, out)`; in a batch,
    for each matrix.

    Args:
        model: A built, plain model.
        lora_rank: Rank of the LoRA to compare with.
        targets: As in `enable_randlora`.
        exclude: Likewise.

    Example:
    >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
    >>> kr.rank_like_lora(model, 8, "all-linear")  # LoRA: 8 * (64 + 64) parameters
    4
    """
    lora_rank = positive_integer("lora_rank", lora_rank)
    layouts = _layouts(model, targets, exclude)
    lora = sum(
        lora_rank * (layout.inputs + layout.outputs) * (layout.batch or 1)
        for layout in layouts
    )
    return rank_for_budget(model, lora, targets, exclude=exclude)


def _layouts(model: keras.Model, targets: Any, exclude: Any) -> list[KernelLayout]:
    config = RandLoRAConfig(targets=targets, exclude=exclude)
    chosen = select(model, config).adapted
    return [layout_of(site.layer) for site in chosen]


def _parameters(layouts: list[KernelLayout], rank: int) -> int:
    options = LayerOptions(rank=rank)
    return sum(UpdateShape.of_layout(layout, options).trainable for layout in layouts)
