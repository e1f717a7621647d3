"""The mathematics of the RandLoRA update, as pure functions of arrays.

| symbol | name here | shape | kind |
|---|---|---|---|
| A | `basis_a` | `(r, s)` | frozen |
| B | `basis_b` | `(l, n * r)` | frozen |
| λ | `lambda_` | `(r, n)` | trainable, starts at 0 |
| γ | `gamma` | `(n, s)` | trainable, starts at `1 / s` |
| M | the update | `(l, s)` | `scale * sum_j B_j diag(λ_j) A diag(γ_j)` |

`l` and `s` are the larger and the smaller side of the kernel, `n` the number of
bases, and `B_j` the columns `j, n + j, 2n + j, …` of B. So column `k * n + j` of
B meets row `k * n + j` of the stacked `λ[k, j] * A[k] * γ[j]`, the order in which
Hugging Face PEFT flattens its tensors (`peft/tuners/randlora/layer.py`).

Reference: RandLoRA: Full-rank parameter-efficient fine-tuning of large models
(Albert et al., ICLR 2025), equation 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from keras import ops

from keras_randlora.bases import Operator, PairSize
from keras_randlora.config import LayerOptions
from keras_randlora.tools import cast, reshape
from keras_randlora.update.layouts import KernelLayout

Array = Any


@dataclass(frozen=True)
class UpdateShape:
    """Sizes of the update of one kernel, seen as a matrix `(inputs, outputs)`.

    Attributes:
        inputs: Rows of the kernel matrix.
        outputs: Columns of the kernel matrix.
        rank: Rank `r` of each basis.
        num_bases: Number of bases `n`.
    """

    inputs: int
    outputs: int
    rank: int
    num_bases: int

    @classmethod
    def of_kernel(
        cls, inputs: int, outputs: int, rank: int, num_bases: int | None = None
    ) -> UpdateShape:
        """Return the shape with `ceil(s / r)` bases, or `num_bases` if fewer."""
        full = math.ceil(min(inputs, outputs) / rank)
        return cls(inputs, outputs, rank, min(full, num_bases or full))

    @classmethod
    def of_layout(cls, layout: KernelLayout, options: LayerOptions) -> UpdateShape:
        """Return the shape of the update of a kernel with the options of its layer."""
        return cls.of_kernel(
            layout.inputs, layout.outputs, options.rank, options.num_bases
        )

    @property
    def larger(self) -> int:
        """The larger side `l`."""
        return max(self.inputs, self.outputs)

    @property
    def smaller(self) -> int:
        """The smaller side `s`."""
        return min(self.inputs, self.outputs)

    @property
    def columns(self) -> int:
        """Columns of B in use, `n * r`."""
        return self.num_bases * self.rank

    @property
    def transposed(self) -> bool:
        """Whether the kernel's update is `Mᵀ` (inputs on the smaller side)."""
        return self.inputs <= self.outputs

    @property
    def trainable(self) -> int:
        """Trainable parameters, `n * (r + s)`."""
        return self.num_bases * (self.rank + self.smaller)


def pair_size(shapes: Sequence[UpdateShape]) -> PairSize:
    """Return the sizes of the smallest pair of bases that serves all (of one rank)."""
    return PairSize(
        shapes[0].rank,
        max(shape.smaller for shape in shapes),
        max(shape.larger for shape in shapes),
        max(shape.columns for shape in shapes),
    )


class AdapterGradients(NamedTuple):
    """Gradients of the loss: `lambda_` of shape `(r, n)`, `gamma` `(n, s)`."""

    lambda_: Array
    gamma: Array


def scaled_basis_a(lambda_: Array, gamma: Array, basis_a: Array) -> Array:
    """Return the stacked `diag(λ_j) A diag(γ_j)` of shape `(r * n, s)`.

    Row `k * n + j` is `λ[k, j] * A[k] * γ[j]`.
    """
    rank, num_bases = lambda_.shape
    stacked = lambda_[:, :, None] * basis_a[:, None, :] * gamma[None, :, :]
    return reshape(stacked, (rank * num_bases, gamma.shape[1]))


def kernel_update(
    shape: UpdateShape,
    lambda_: Array,
    gamma: Array,
    basis_a: Array,
    basis_b: Operator,
    scale: float,
) -> Array:
    """Return the update of the kernel matrix, of shape `(inputs, outputs)`.

    It is `M = scale * sum_j B_j diag(λ_j) A diag(γ_j)`, transposed if the inputs are
    the smaller side. The product is taken in the dtype of `basis_b`; λ, γ and A are
    combined in float32 before.
    """
    scaled = scaled_basis_a(scale * lambda_, gamma, cast(basis_a, "float32"))
    scaled = cast(scaled, basis_b.dtype)
    if shape.transposed:
        return basis_b.expand_transposed(scaled)
    return basis_b.expand(scaled)


def adapter_gradients(
    stacked_gradient: Array,
    lambda_: Array,
    gamma: Array,
    basis_a: Array,
    scale: float,
) -> AdapterGradients:
    """Turn the gradient of the stacked basis A into those of λ and γ.

    With `G` the gradient of M, that of the stacked basis is `Bᵀ G`.

    Args:
        stacked_gradient: Gradient of `scale * scaled_basis_a(…)`, `(r * n, s)`.
        lambda_: λ of shape `(r, n)`, float32.
        gamma: γ of shape `(n, s)`, float32.
        basis_a: A of shape `(r, s)`.
        scale: The factor of the update.
    """
    rank, num_bases = lambda_.shape
    gradient = cast(stacked_gradient, "float32")
    gradient = reshape(gradient, (rank, num_bases, gamma.shape[1]))
    gradient = gradient * cast(basis_a, "float32")[:, None, :]
    return AdapterGradients(
        lambda_=scale * ops.sum(gradient * gamma[None, :, :], axis=2),
        gamma=scale * ops.sum(gradient * lambda_[:, :, None], axis=0),
    )
