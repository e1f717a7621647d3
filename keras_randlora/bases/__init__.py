"""From a seed to the frozen random bases, and the products that are taken with them.

In: a distribution, a seed and sizes (`BasisSpec`). Out: the entries of A and B, the
same on every backend, and operators that multiply by B.
"""

from keras_randlora.bases.draws import (
    BLOCK,
    DISTRIBUTIONS,
    BasisSpec,
    Distribution,
    blocks,
    draw_a,
    draw_a_ops,
    draw_b,
    draw_b_ops,
    draw_left,
    draw_left_ops,
    draw_right,
    draw_right_ops,
    resolve_sparsity,
    scale_of,
    seed_tensor,
)
from keras_randlora.bases.operators import (
    Basis,
    DenseBasis,
    KroneckerBasis,
    dense_operations,
    kronecker_operations,
)
from keras_randlora.bases.sparse import (
    SparseBasis,
    pays,
    sparse_operations,
)

__all__ = [
    "BLOCK",
    "Basis",
    "BasisSpec",
    "DISTRIBUTIONS",
    "DenseBasis",
    "Distribution",
    "KroneckerBasis",
    "SparseBasis",
    "blocks",
    "dense_operations",
    "draw_a",
    "draw_a_ops",
    "draw_b",
    "draw_b_ops",
    "draw_left",
    "draw_left_ops",
    "draw_right",
    "draw_right_ops",
    "kronecker_operations",
    "pays",
    "resolve_sparsity",
    "scale_of",
    "seed_tensor",
    "sparse_operations",
]
