"""The formula of the update, its gradient, kernels as matrices, the owner of the bases.

In: λ, γ, and the shape or equation of a kernel. Out: the update of that kernel, and
the gradients of λ and γ.
"""

from keras_randlora.update.bank import (
    BasisBank,
    GivenBasisBank,
    bank_for,
    rebuilt_bank,
)
from keras_randlora.update.formula import (
    UpdateShape,
    adapter_gradients,
    kernel_update,
    pair_size,
    projected_gradient,
    scaled_basis_a,
)
from keras_randlora.update.gradient import (
    computed_after,
    with_gradient,
)
from keras_randlora.update.layouts import (
    KernelLayout,
    dense_layout,
    einsum_layout,
    read_layout,
)

__all__ = [
    "BasisBank",
    "GivenBasisBank",
    "KernelLayout",
    "UpdateShape",
    "adapter_gradients",
    "bank_for",
    "computed_after",
    "dense_layout",
    "einsum_layout",
    "kernel_update",
    "pair_size",
    "projected_gradient",
    "read_layout",
    "rebuilt_bank",
    "scaled_basis_a",
    "with_gradient",
]
