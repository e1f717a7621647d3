"""The mathematics of the RandLoRA update, as pure functions of arrays.

| symbol | name here | shape | kind |
|---|---|---|---|
| A | `basis_a` | `(r, s)` | frozen |
| B | `basis_b` | `(l, n * r)` | frozen |
| λ | `lambda_` | `(r, n)` | trainable, starts at 0 |
| γ | `gamma` | `(n, s)` | trainable, starts at `1 / s` |
| M | the update | `(l, s)` | `scale * sum_j B_j diag(λ_j) A diag(γ_j)` |

A kernel that is a batch of E matrices (experts, heads) has λ `(E, r, n)` and γ
`(E, n, s)`, or one of them of a single matrix that all share, and the one pair A, B.

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
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from keras import ops

from keras_randlora.bases import Operator, PairSize
from keras_randlora.config import BatchSharing, LayerOptions
from keras_randlora.tools import cast, reshape, transpose
from keras_randlora.update.layouts import KernelLayout

Array = Any


@dataclass(frozen=True)
class UpdateShape:
    """Sizes of the update of one kernel, read as a matrix `(inputs, outputs)`.

    Attributes:
        inputs: Rows of the kernel matrix.
        outputs: Columns of the kernel matrix.
        rank: Rank `r` of each basis.
        num_bases: Number of bases `n`.
        batch: Number of matrices in the kernel, `None` for a single one.
        shared: Which of λ and γ the matrices of a batch share.
    """

    inputs: int
    outputs: int
    rank: int
    num_bases: int
    batch: int | None = field(default=None, repr=False)
    shared: BatchSharing = field(default="none", repr=False)

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
        shape = cls.of_kernel(
            layout.inputs, layout.outputs, options.rank, options.num_bases
        )
        return replace(shape, batch=layout.batch, shared=options.shared_in_batch)

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
    def lambda_shape(self) -> tuple[int, ...]:
        """Shape of λ: `(r, n)`, in a batch one for each matrix or for all."""
        return (*self._batch("lambda"), self.rank, self.num_bases)

    @property
    def gamma_shape(self) -> tuple[int, ...]:
        """Shape of γ: `(n, s)`, in a batch one for each matrix or for all."""
        return (*self._batch("gamma"), self.num_bases, self.smaller)

    @property
    def trainable(self) -> int:
        """Trainable parameters, `n * (r + s)` for each matrix that shares none."""
        return math.prod(self.lambda_shape) + math.prod(self.gamma_shape)

    @property
    def entries(self) -> int:
        """Entries of the kernel."""
        return self.inputs * self.outputs * (self.batch or 1)

    def _batch(self, name: str) -> tuple[int, ...]:
        if self.batch is None:
            return ()
        return (1 if self.shared == name else self.batch,)


def pair_size(shapes: Sequence[UpdateShape]) -> PairSize:
    """Return the sizes of the smallest pair of bases that serves all (of one rank)."""
    return PairSize(
        shapes[0].rank,
        max(shape.smaller for shape in shapes),
        max(shape.larger for shape in shapes),
        max(shape.columns for shape in shapes),
    )


class AdapterGradients(NamedTuple):
    """Gradients of the loss, of the shapes of λ and γ."""

    lambda_: Array
    gamma: Array


def scaled_basis_a(lambda_: Array, gamma: Array, basis_a: Array) -> Array:
    """Return the stacked `diag(λ_j) A diag(γ_j)` of shape `(r * n, s)`.

    Row `k * n + j` is `λ[k, j] * A[k] * γ[j]`. Those of a batch stand side by side,
    `(r * n, E * s)`.
    """
    rank, num_bases = lambda_.shape[-2:]
    if len(lambda_.shape) == 2:
        stacked = lambda_[:, :, None] * basis_a[:, None, :] * gamma[None, :, :]
    else:
        lambda_, gamma = _batch_inside(lambda_, gamma)
        stacked = lambda_[..., None] * basis_a[:, None, None, :] * gamma[None]
    return reshape(stacked, (rank * num_bases, -1))


def kernel_update(
    shape: UpdateShape,
    lambda_: Array,
    gamma: Array,
    basis_a: Array,
    basis_b: Operator,
    scale: float,
) -> Array:
    """Return the update of the kernel matrix, `(inputs, outputs)`, or of a batch.

    It is `M = scale * sum_j B_j diag(λ_j) A diag(γ_j)`, transposed if the inputs are
    the smaller side. The product is taken in the dtype of `basis_b`; λ, γ and A are
    combined in float32 before.
    """
    scaled = scaled_basis_a(scale * lambda_, gamma, cast(basis_a, "float32"))
    scaled = cast(scaled, basis_b.dtype)
    if shape.transposed:
        update = basis_b.expand_transposed(scaled)
        batch = shape.batch, shape.smaller, shape.larger
        return update if shape.batch is None else reshape(update, batch)
    update = basis_b.expand(scaled)
    if shape.batch is None:
        return update
    split = reshape(update, (shape.larger, shape.batch, shape.smaller))
    return transpose(split, (1, 0, 2))


def projected_gradient(shape: UpdateShape, gradient: Array, basis_b: Operator) -> Array:
    """Return `Bᵀ G`, with the gradient G of M, from that of `kernel_update`'s result.

    Of shape `(n * r, s)`; those of a batch stand side by side, `(n * r, E * s)`.
    """
    if shape.transposed:
        return basis_b.project_transposed(reshape(gradient, (-1, shape.larger)))
    if shape.batch is not None:
        gradient = reshape(transpose(gradient, (1, 0, 2)), (shape.larger, -1))
    return basis_b.project(gradient)


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
        stacked_gradient: Gradient of `scale * scaled_basis_a(…)`, `(r * n, s)`, or
            `(r * n, E * s)` of a batch.
        lambda_: λ, float32.
        gamma: γ, float32.
        basis_a: A of shape `(r, s)`.
        scale: The factor of the update.
    """
    rank, num_bases = lambda_.shape[-2:]
    smaller = gamma.shape[-1]
    gradient = cast(stacked_gradient, "float32")
    basis_a = cast(basis_a, "float32")
    if len(lambda_.shape) == 2:
        gradient = reshape(gradient, (rank, num_bases, smaller))
        gradient = gradient * basis_a[:, None, :]
        return AdapterGradients(
            lambda_=scale * ops.sum(gradient * gamma[None, :, :], axis=2),
            gamma=scale * ops.sum(gradient * lambda_[:, :, None], axis=0),
        )
    batch = lambda_.shape[0], gamma.shape[0]
    gradient = reshape(gradient, (rank, num_bases, max(batch), smaller))
    gradient = gradient * basis_a[:, None, None, :]
    lambda_, gamma = _batch_inside(lambda_, gamma)
    of_lambda = transpose(ops.sum(gradient * gamma[None], axis=3), (2, 0, 1))
    of_gamma = transpose(ops.sum(gradient * lambda_[..., None], axis=0), (1, 0, 2))
    return AdapterGradients(
        lambda_=scale * _summed_if_shared(of_lambda, batch[0]),
        gamma=scale * _summed_if_shared(of_gamma, batch[1]),
    )


def _batch_inside(lambda_: Array, gamma: Array) -> tuple[Array, Array]:
    """Return λ as `(r, n, E)` and γ as `(n, E, s)`."""
    return transpose(lambda_, (1, 2, 0)), transpose(gamma, (1, 0, 2))


def _summed_if_shared(gradient: Array, batch: int) -> Array:
    """Return the gradient, summed over the batch where all matrices share it."""
    if batch == gradient.shape[0]:
        return gradient
    return ops.sum(gradient, axis=0, keepdims=True)
