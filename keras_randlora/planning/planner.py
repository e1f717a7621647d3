"""Estimate of the peak memory of a training step, without allocating it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import keras

from keras_randlora.adapt import (
    adapter_shapes,
    require_plain,
    select,
    sites,
    update_shapes,
)
from keras_randlora.config import RandLoRAConfig
from keras_randlora.layers import parameter_count
from keras_randlora.planning.abstract import abstract_backbone
from keras_randlora.planning.activations import TrainingStep, step_bytes
from keras_randlora.planning.footprint import QUANTIZATIONS, basis_bytes, weight_bytes
from keras_randlora.tools import html_table, item_size, positive_integer

_MOMENTS_OF_ADAMW = 2


@dataclass(frozen=True)
class Plan:
    """The bytes that a training step needs at its peak.

    Print it for a table in GB (10⁹ bytes).

    Attributes:
        parameters: Parameters of the model, without the adapter and the bases.
        trainable: Trainable parameters: λ, γ, and layers that are fully trained.
        weights: Bytes of the model's weights.
        bases: Bytes of the stored bases.
        adapter: Bytes of λ and γ, float32.
        gradients: Bytes of the gradients of the trainable parameters.
        optimizer: Bytes of AdamW's two moments.
        activations: Bytes that the layers keep for the backward pass.
        logits: Bytes of the outputs, their softmax and their gradient.
        temporaries: Bytes of the largest adapted kernel's update and gradient, of
            dequantized weights, and of a block's recomputed activations.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> planned = kr.plan(model, 2, targets="d", batch=8, sequence=1)
    >>> planned.parameters, planned.trainable, planned.weights, planned.bases
    (28, 12, 112, 128)
    """

    parameters: int
    trainable: int
    weights: int
    bases: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    temporaries: int

    @property
    def step(self) -> int:
        """Bytes of a step beside the model, its adapter and its bases."""
        return self.total - self.weights - self.bases - self.adapter

    @property
    def total(self) -> int:
        """All bytes at the peak of a step."""
        return sum(getattr(self, name) for name in _PARTS)

    def fits(self, gigabytes: float) -> bool:
        """Return whether a step fits into memory.

        Args:
            gigabytes: Free memory in GB (10⁹ bytes), without the framework's own, some
                0.5 GB on a GPU.
        """
        return self.total <= gigabytes * 1e9

    def __str__(self) -> str:
        """Return a table in GB."""
        lines = [f"{name:<12} {size:>9.3f} GB" for name, size in self._rows()]
        return "\n".join([*lines, self._trained()])

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        return html_table(("part", "GB"), self._rows(), [self._trained()])

    def _rows(self) -> list[tuple[str, float]]:
        """Return the parts and their sum in GB."""
        return [(name, getattr(self, name) / 1e9) for name in (*_PARTS, "total")]

    def _trained(self) -> str:
        return f"{self.trainable:,} of {self.parameters:,} parameters trained."


_COUNTS = ("parameters", "trainable")
_PARTS = [field.name for field in fields(Plan) if field.name not in _COUNTS]


def plan(
    model: Any,
    rank: int = 32,
    *,
    targets: Any = None,
    batch: int = 1,
    sequence: int = 512,
    dtype: Any = None,
    quantization: str | None = None,
    remat: bool = False,
    flash_attention: bool | None = None,
    **options: Any,
) -> Plan:
    """Predict the peak memory of fine-tuning, without allocating it.

    Weights, bases, adapter, gradients and optimizer are exact. Activations follow from
    the layers of each block and what the backend keeps of them, see
    `keras_randlora.planning.activations`. Training is next-token prediction if
    keras-hub has a causal language model for the backbone.

    Args:
        model: A plain built model; a keras-hub preset, of which only the configuration
            is read: a folder (of keras-hub or Hugging Face), a name or handle; or a
            configuration: the content of such a folder's `config.json`, or
            `{"class": "Llama3Backbone", "num_layers": 32, …}` with the arguments of the
            backbone's constructor.
        rank: Rank of each basis.
        targets: As in `enable_randlora`.
        batch: Sequences per step; with `gradient_accumulation_steps` per pass.
        sequence: Tokens in a sequence; 1 for models without.
        dtype: dtype or dtype policy of a preset or configuration, for instance
            `"bfloat16"`. A model has its own.
        quantization: `"int8"` or `"int4"`, as by `model.quantize`; default none.
        remat: Whether the blocks use activation checkpointing (`rematerialize`).
        flash_attention: Whether attention is fused and keeps no scores. `None` means
            what the blocks do on this backend and device.
        **options: Further options of `enable_randlora`.

    Raises:
        ValueError: The configuration cannot be read, an option is out of range, a
            target matches nothing, the model is adapted already or not built, or
            `dtype` is given for a model.
        TypeError: An option has the wrong type.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    >>> planned = kr.plan(model, 2, targets="all-linear", batch=8, sequence=1)
    >>> planned.weights, planned.adapter, planned.optimizer
    (112, 48, 96)
    >>> planned.fits(1)
    True
    """
    config = RandLoRAConfig(rank=rank, targets=targets, **options)
    batch = positive_integer("batch", batch)
    sequence = positive_integer("sequence", sequence)
    if quantization not in (None, *QUANTIZATIONS):
        raise ValueError(
            f"`quantization` must be one of {list(QUANTIZATIONS)} or None. Received: "
            f"quantization={quantization!r}."
        )
    if isinstance(model, keras.Model):
        if dtype is not None:
            raise ValueError(
                f"Model '{model.name}' has a dtype already: `dtype` is for presets and "
                f"configurations. Received: dtype={dtype!r}."
            )
        require_plain(model)
    else:
        model = abstract_backbone(model, dtype)
    selection = select(model, config)
    shapes = update_shapes(selection, config)
    adapter = sum(shape.trainable for shape in shapes)
    trained = adapter_shapes(model, config, selection).values()
    trainable = sum(math.prod(shape) for shape in trained)
    gradients = 4 * adapter + (trainable - adapter) * item_size(model.variable_dtype)
    step = TrainingStep(batch, sequence, remat, flash_attention)
    needs = step_bytes(model, selection, shapes, step, quantization=quantization)
    return Plan(
        parameters=parameter_count([model, *(s.layer for s in sites(model))]),
        trainable=trainable,
        weights=weight_bytes(model, quantization),
        bases=basis_bytes(shapes, config, selection.adapted[0].layer.compute_dtype),
        adapter=4 * adapter,
        gradients=gradients,
        optimizer=_MOMENTS_OF_ADAMW * gradients,
        activations=needs.activations,
        logits=needs.logits,
        temporaries=needs.temporaries,
    )
