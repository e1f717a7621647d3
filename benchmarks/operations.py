"""The operations of one training step, counted (multiply-adds ×2).

Norms, activations, softmax and the optimizer are left out; the attention products count
in full, as most kernels compute the masked half too. T tokens, kernel sides l ≥ s:

| method | adapted linear layer | other linear layer |
|---|---|---|
| full | `6 T l s` | – |
| Keras LoRA | `6 T l s + 6 l s r` | `4 T l s` |
| PEFT LoRA | `4 T l s + 6 T r (l + s)` | `4 T l s` |
| PEFT RandLora | `4 T l s + T n r (4 l + 6 s)` | `4 T l s` |
| ours | `4 T l s` + what `AdaptedProduct` counts | `4 T l s` |
"""

import math
from typing import Any, NamedTuple

from benchmarks.cases import Case
from benchmarks.models import MODELS


class Operations(NamedTuple):
    """Operations of a step, by their part of the model.

    Attributes:
        linear: The frozen linear layers: forward, and the gradient of their input.
        method: The method's additional operations.
        attention: The products of queries, keys and values.
        head: The logits.
    """

    linear: int
    method: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self)


def of_step(case: Case, ours: int = 0) -> Operations:
    """Count the operations of a step.

    Args:
        case: The method and its model.
        ours: The additional operations of RandLoRA's layers, by their own count.
    """
    sizes, tokens = MODELS[case.model], case.tokens
    kernels = sizes.kernels()
    every = sum(inputs * outputs for inputs, outputs in kernels.values())
    added = [
        _added(case, *kernels[name])
        for name in (kernels if case.method == "full" else sizes.targeted(case.targets))
    ]
    head = (6 if case.method == "full" else 4) * tokens * sizes.hidden
    attention = 12 * tokens * case.length * sizes.heads * sizes.head_dim
    return Operations(
        linear=sizes.blocks * 4 * tokens * every,
        method=sizes.blocks * sum(added) + ours,
        attention=sizes.blocks * attention,
        head=head * sizes.vocabulary,
    )


def of_our_layers(model: Any, tokens: int) -> int:
    """Return the additional operations of a model's adapted layers."""
    from keras_randlora.adapt import sites
    from keras_randlora.layers.adapted import RandLoRALayer

    adapters = [
        site.layer.randlora
        for site in sites(model)
        if isinstance(site.layer, RandLoRALayer)
    ]
    return sum(of_adapter(a.product, a.options.compute, tokens) for a in adapters)


def of_adapter(product: Any, compute: str, tokens: int) -> int:
    """Return the additional operations of one of our layers."""
    if product.way(compute, tokens) == "factored":
        return product.factored_operations(tokens)
    return product.materialized_operations(tokens)


def _added(case: Case, inputs: int, outputs: int) -> int:
    """Return the additional operations of another method for one kernel."""
    area, larger, smaller = inputs * outputs, max(inputs, outputs), min(inputs, outputs)
    if case.method == "full":
        return 2 * case.tokens * area
    if case.method == "keras-lora":
        return 2 * case.tokens * area + 6 * area * case.lora_rank
    if case.method == "peft-lora":
        return 6 * case.tokens * case.lora_rank * (inputs + outputs)
    if case.method == "peft-randlora":
        columns = math.ceil(smaller / case.rank) * case.rank
        return case.tokens * columns * (4 * larger + 6 * smaller)
    return 0
