"""Frozen random bases drawn from a seed, and products with them.

In: the name of a kind, a seed and sizes. Out: the entries of A and B, the same on every
backend, device and process, and operators for products with B. `register_basis` adds a
new distribution.
"""

from keras_randlora.bases.distributions import Distribution
from keras_randlora.bases.draws import seed_tensor
from keras_randlora.bases.kinds import BasisKind, EntrywiseBasis, PairSize
from keras_randlora.bases.operators import (
    BLOCK,
    DenseOperator,
    KroneckerOperator,
    Operator,
)
from keras_randlora.bases.sparse import SparseOperator, sparse_operations, sparse_pays
from keras_randlora.bases.spec import (
    BasisSpec,
    basis_names,
    kind_of,
    register_basis,
    resolve_sparsity,
    scale_of,
)

__all__ = [
    "BLOCK",
    "BasisKind",
    "BasisSpec",
    "DenseOperator",
    "Distribution",
    "EntrywiseBasis",
    "KroneckerOperator",
    "Operator",
    "PairSize",
    "SparseOperator",
    "basis_names",
    "kind_of",
    "register_basis",
    "resolve_sparsity",
    "scale_of",
    "seed_tensor",
    "sparse_operations",
    "sparse_pays",
]
