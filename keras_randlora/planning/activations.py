"""Memory of the activations of a training step, counted from a model's layers.

A transformer block keeps for the backward pass, in entries per token:

| part | entries | when |
|---|---|---|
| norm | its input, in float32 | always; Llama's code its square too, on torch |
| linear layers | their input, once for those that share it | one of them is adapted |
| attention | queries, keys, values, result | always |
| scores | 2 × heads × sequence | attention is not fused |
| feed-forward | input and result of the activation; all factors of a gate | always |
| experts | input and result of each bank, for every expert: all are computed | always |

At the peak, when the backward pass begins, all of this is in memory beside the outputs,
their log-softmax and the gradients of both. Adapted layers keep only their input, see
`keras_randlora.layers.product`; a kernel that is read is kept with its update. With
activation checkpointing a block keeps only its input, and one block at a time the rest.
Layers before the first adapted block keep nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras

from keras_randlora.adapt import Selection, Site, all_sites, backbone_of, sites
from keras_randlora.layers import LinearWeight, holder_of, layout_of
from keras_randlora.tools import is_reversible, item_size, keras_internals
from keras_randlora.update import UpdateShape

_FLOAT32 = 4
# M, the adapted kernel or the gradient of M, and a product with B.
_KERNELS_AT_A_TIME = 3


@dataclass(frozen=True)
class TrainingStep:
    """The user's options for a step.

    Attributes:
        batch: Sequences.
        sequence: Tokens in a sequence.
        remat: Whether blocks use activation checkpointing.
        flash_attention: Whether attention is fused and keeps no scores; `None` for
            what the blocks do.
    """

    batch: int
    sequence: int
    remat: bool = False
    flash_attention: bool | None = None

    @property
    def tokens(self) -> int:
        """Tokens in the step."""
        return self.batch * self.sequence


class Needs(NamedTuple):
    """Bytes at the peak of a step, beside weights, adapter and optimizer."""

    activations: int
    logits: int
    temporaries: int


def step_bytes(
    model: keras.Model,
    selection: Selection,
    shapes: Sequence[UpdateShape],
    step: TrainingStep,
    quantization: str | None = None,
) -> Needs:
    """Estimate the bytes that the backward pass of a step needs.

    Args:
        model: A plain model; its weights need no values.
        selection: The layers to adapt and train.
        shapes: Sizes of the updates of the adapted layers.
        step: The user's options.
        quantization: `"int8"`, `"int4"` or `None`: weights are dequantized for each
            product, the kernels of adapted layers and the int4 table of the logits.
    """
    item = item_size(model.compute_dtype)
    trained = {
        id(holder_of(site.layer))
        for site in (*selection.adapted, *selection.also_trained)
    }
    blocks = _blocks(model, trained)
    kept = [step.tokens * _kept(block, step, item) for block in blocks]
    inputs = [step.tokens * block.hidden * item for block in blocks]
    rest = step.tokens * _kept_outside(model, trained, item)
    experts = step.tokens * _kept_of_experts(model) * item
    read = _read_kernels(selection) * item
    if step.remat and blocks:  # of one block at a time
        experts, read = experts // len(blocks), read // len(blocks)
    rest += experts + read
    logits = _logits(model, step, item)
    kernel = max(shape.entries for shape in shapes)
    temporaries = kernel * _KERNELS_AT_A_TIME * _FLOAT32
    if quantization is not None:
        temporaries += kernel * item
    if quantization == "int4":
        temporaries += item * _logit_table(model)
    widest = max([max(block.inner, default=0) for block in blocks], default=0)
    backward = step.tokens * 3 * widest * item
    if not step.remat:
        return Needs(sum(kept) + rest, logits, temporaries + max(0, backward - logits))
    # Blocks are computed again after the logits are freed.
    again = max(kept, default=0) + backward
    return Needs(sum(inputs) + rest, logits, temporaries + max(0, again - logits))


@dataclass(frozen=True)
class _Block:
    """One block: widths in entries per token.

    Attributes:
        hidden: Width of the block's input.
        norms: Total width of the inputs of its norms.
        shared: Width of the inputs that adapted layers share with a norm's output.
        queries: Width of the queries, of all heads.
        keys: Width of keys and values together.
        heads: Heads of the queries.
        inner: Widths of the first feed-forward layers.
        result: Width of the inputs that only an adapted layer keeps.
        fused: Whether attention is one operation of Keras.
        llama: Whether keras-hub's code is that of Llama, which repeats keys and values
            for each head, and has its own norm and activation.
    """

    hidden: int
    norms: int
    shared: int
    queries: int
    keys: int
    heads: int
    inner: tuple[int, ...]
    result: int
    fused: bool
    llama: bool


def _kept(block: _Block, step: TrainingStep, item: int) -> int:
    """Return the bytes that a block keeps for each token."""
    torch = keras.backend.backend() == "torch"
    norms = block.norms * _FLOAT32 * (2 if torch and block.llama else 1)
    keys = 2 * block.queries if block.llama else block.keys
    attention = item * (2 * block.queries + keys)
    flash = step.flash_attention
    if flash is None:
        flash = torch and block.fused
    scores = block.heads * (_FLOAT32 + item if torch else 2 * _FLOAT32)
    if block.fused and not torch:
        # XLA keeps two or three of JAX's, depending on the sizes.
        scores += block.heads * _FLOAT32 // 2
    # A fused kernel is given the mask in the dtype of the queries.
    attention += step.sequence * (item if flash else scores) if block.queries else 0
    activation = _FLOAT32 if block.llama else item
    if not torch:
        activation += _FLOAT32
    inner = sum(block.inner) * item
    if block.inner:
        inner += block.inner[0] * activation
    return norms + (block.shared + block.result) * item + attention + inner


def _blocks(model: keras.Model, trained: set[int]) -> list[_Block]:
    """Return the blocks from the first one that holds trained variables."""
    groups: dict[tuple[int, int], list[Site]] = {}
    for site in sites(model):
        if (index := site.block_index) is not None:
            top = id(site.ancestors[1]) if len(site.ancestors) > 1 else 0
            groups.setdefault((top, index), []).append(site)
    found = [g for g in groups.values() if any(site.linear for site in g)]
    touched = [any(id(site.layer) in trained for site in g) for g in found]
    first = touched.index(True) if True in touched else len(found)
    return [_block(group, trained) for group in found[first:]]


def _block(group: list[Site], trained: set[int]) -> _Block:
    linear = [site for site in group if site.linear]
    sides = {site.path: _sides(site) for site in linear}
    adapted = {site.path for site in linear if id(site.layer) in trained}
    attention = [site for site in linear if site.in_attention]
    projections, result = attention[:-1], attention[-1:]
    feed_forward = [site for site in linear if not site.in_attention]
    first = feed_forward[:-1] or feed_forward
    hidden = sides[linear[0].path][0]
    queries = keys = heads = 0
    fused = llama = False
    shared = hidden * any(site.path in adapted for site in first)
    only = 0
    if projections:
        projected = sorted((sides[site.path][1] for site in projections), reverse=True)
        queries, keys = projected[0], sum(projected[1:])
        holder = result[0].ancestors[-1]
        heads = _heads(projections, holder)
        asks = keras_internals.asks_for_fused_attention(holder)
        llama = asks is None and hasattr(holder, "num_key_value_heads")
        fused = asks() if asks else llama
        shared += hidden * any(site.path in adapted for site in projections)
    if feed_forward[1:]:
        last = feed_forward[-1].path
        gated = len(first) > 1
        # The product with a gate exists for the last layer only.
        only = sides[last][0] * (last in adapted or not gated)
    return _Block(
        hidden=hidden,
        norms=sum(_norm_width(site, linear, sides) for site in group),
        shared=shared,
        queries=queries,
        keys=keys,
        heads=heads,
        inner=tuple(sides[site.path][1] for site in first),
        result=only,
        fused=fused,
        llama=llama,
    )


def _sides(site: Site) -> tuple[int, int]:
    """Return the inputs and outputs of a linear layer per token."""
    layout = layout_of(site.layer)
    return layout.inputs, layout.outputs


def _heads(projections: list[Site], holder: Any) -> int:
    """Return the number of heads of an attention layer, 1 if unknown."""
    heads = keras_internals.heads_of(holder)
    if heads is not None:
        return heads
    layout = layout_of(projections[0].layer)
    outputs = [layout.kernel_shape[axis] for axis in layout.output_axes]
    return math.prod(outputs[:-1])


def _norm_width(
    site: Site, linear: list[Site], sides: dict[str, tuple[int, int]]
) -> int:
    """Return the width of a norm's input, 0 for another layer."""
    if "Norm" not in type(site.layer).__name__:
        return 0
    own = keras_internals.own_variables(site.layer)
    width = max((math.prod(weight.shape) for weight in own), default=0)
    # `query_norm` normalizes each head of what `query` returns.
    heads = [s for s in linear if site.name.startswith(f"{s.name}_")]
    return sides[heads[0].path][1] if heads else width


def _kept_outside(model: keras.Model, trained: set[int], item: int) -> int:
    """Return the bytes that layers outside of blocks keep for each token."""
    total = 0
    for site in sites(model):
        if site.block_index is not None:
            continue
        if site.linear and id(site.layer) in trained:
            total += sum(_sides(site)) * item
        total += _norm_width(site, [], {}) * (_FLOAT32 + item)
    return total


def _kept_of_experts(model: keras.Model) -> int:
    """Return the entries that expert banks keep for each token."""
    banks = [
        layout_of(site.layer)
        for site in all_sites(model, {})
        if isinstance(site.layer, LinearWeight)
    ]
    return sum((bank.batch or 1) * (bank.inputs + bank.outputs) for bank in banks)


def _read_kernels(selection: Selection) -> int:
    """Return the entries of adapted kernels that other code reads."""
    layouts = [layout_of(layer) for layer in selection.layers]
    read = [layout for layout in layouts if layout.equation is None]
    return sum(math.prod(layout.kernel_shape) for layout in read)


def _logits(model: keras.Model, step: TrainingStep, item: int) -> int:
    """Return the bytes of outputs, log-softmax, and the gradients of both."""
    copies = 3 * _FLOAT32
    if keras.backend.backend() == "torch" or item < _FLOAT32:
        copies += item
    return copies * _outputs(model, step)


def _logit_table(model: keras.Model) -> int:
    """Return the number of entries of the output embedding."""
    tables = [site.layer for site in sites(model) if is_reversible(site.layer)]
    return max((table.input_dim * table.output_dim for table in tables), default=0)


def _outputs(model: keras.Model, step: TrainingStep) -> int:
    """Return the number of outputs of a step; for a backbone those of a causal LM."""
    if backbone_of(model) is model and hasattr(model, "vocabulary_size"):
        if type(model) in _causal_backbones():
            return step.tokens * model.vocabulary_size
    shape = _first_shape(model)
    if len(shape) > 2:
        return step.tokens * shape[-1]
    return step.batch * math.prod(size or 1 for size in shape[1:])


def _first_shape(model: keras.Model) -> tuple[Any, ...]:
    """Return the shape of a model's first output, `()` if unknown."""
    try:
        outputs = keras.tree.flatten(model.output)
    except (AttributeError, ValueError):
        return ()
    return tuple(outputs[0].shape)


def _causal_backbones() -> set[type]:
    """Return the backbones for which keras-hub has a causal language model."""
    import keras_hub

    waiting, found = [keras_hub.models.CausalLM], set()
    while waiting:
        task = waiting.pop()
        found.add(task.backbone_cls)
        waiting += task.__subclasses__()
    return found
