"""Formula, gradients, kernel layouts, and the bank of bases.

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
    pair_size,
    scaled_basis_a,
)
from keras_randlora.update.gradient import (
    computed_after,
    with_gradient,
    with_gradient_of_kind,
)
from keras_randlora.update.layouts import (
    KernelLayout,
    dense_layout,
    einsum_layout,
    read_layout,
)
from keras_randlora.update.strips import (
    Update,
    adapted_kernel,
    adapted_matrix,
    gradients_of_matrix,
    gradients_of_product,
)

__all__ = [
    "BasisBank",
    "GivenBasisBank",
    "KernelLayout",
    "Update",
    "UpdateShape",
    "adapted_kernel",
    "adapted_matrix",
    "adapter_gradients",
    "bank_for",
    "computed_after",
    "dense_layout",
    "einsum_layout",
    "gradients_of_matrix",
    "gradients_of_product",
    "pair_size",
    "read_layout",
    "rebuilt_bank",
    "scaled_basis_a",
    "with_gradient",
    "with_gradient_of_kind",
]
