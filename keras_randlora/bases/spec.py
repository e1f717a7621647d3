"""Specification of a pair of bases, and the table of kinds.

| `basis` | entries before `scale_of` | dtype |
|---|---|---|
| `"uniform"` | U(-√3, √3) | float32 |
| `"normal"` | N(0, 1), as 65,536 equally likely values | float32 |
| `"binary"` | ±1 | int8 |
| `"sparse"` | ±1 with probability 1/6 each, else 0 | int8 |
| `"very_sparse"` | ±1 with probability 1/√l each, else 0 | int8 |
| `"ternary"` | ±1 with probability 1/`sparsity` each, else 0 | int8 |
| `"kronecker"` | A: U(-√3, √3); B: the leading part of `left ⊗ right` | float32 |

Reference: Albert et al., "RandLoRA: full-rank parameter-efficient fine-tuning of large
models", ICLR 2025.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from keras_randlora.bases import distributions
from keras_randlora.bases.distributions import Distribution
from keras_randlora.bases.kinds import BasisKind, EntrywiseBasis, KroneckerBasis
from keras_randlora.tools import real_number, uint32

_MAX_SPARSITY = 2.0**31
_KINDS: dict[str, BasisKind] = {
    "uniform": EntrywiseBasis(distributions.UNIFORM),
    "normal": EntrywiseBasis(distributions.NORMAL),
    "binary": EntrywiseBasis(distributions.BINARY),
    "sparse": EntrywiseBasis(distributions.SPARSE),
    "very_sparse": EntrywiseBasis(distributions.VERY_SPARSE),
    "ternary": EntrywiseBasis(distributions.TERNARY),
    "kronecker": KroneckerBasis(),
}


@dataclasses.dataclass(frozen=True)
class BasisSpec:
    """The kind, sparsity and seed that determine a pair of bases.

    Attributes:
        basis: Name of a kind of bases.
        sparsity: The result of `resolve_sparsity`: `s` in `P(±1) = 1/s` for the ternary
            kinds, `None` for the dense ones.
        seed: An integer in `[0, 2**32)`.

    Raises:
        TypeError: If `sparsity` or `seed` is not a number of the right kind.
        ValueError: If a value is unknown or out of range.
    """

    basis: str
    sparsity: float | None
    seed: int

    def __post_init__(self) -> None:
        """Validate the values and store plain Python numbers."""
        dense = self.kind.distribution.dtype == "float32"
        if dense != (self.sparsity is None):
            raise ValueError(
                f"`sparsity` must be {'None' if dense else 'a number'} for "
                f"basis={self.basis!r}; `resolve_sparsity` gives the right value. "
                f"Received: sparsity={self.sparsity!r}."
            )
        if self.sparsity is not None:
            object.__setattr__(self, "sparsity", _checked_sparsity(self.sparsity))
        object.__setattr__(self, "seed", uint32("seed", self.seed))

    @property
    def kind(self) -> BasisKind:
        """The kind of bases."""
        return kind_of(self.basis)


def basis_names() -> list[str]:
    """Return the valid names of `basis`."""
    return list(_KINDS)


def kind_of(basis: str) -> BasisKind:
    """Return the kind of bases with this name.

    Raises:
        ValueError: There is none.
    """
    if not isinstance(basis, str) or basis not in _KINDS:
        raise ValueError(
            f"`basis` must be one of {', '.join(map(repr, _KINDS))}. "
            f"Received: basis={basis!r}."
        )
    return _KINDS[basis]


def register_basis(name: str, basis: BasisKind | Distribution) -> None:
    """Make a kind of bases an option: `enable_randlora(model, basis=name)`.

    Args:
        name: The value of the option `basis`, also in files. A process that loads such
            a file must register it first.
        basis: A `Distribution` of independent entries with variance 1 after
            `scale_of`, the same in NumPy and `keras.ops` bit for bit; or a kind with
            products of its own.

    Raises:
        ValueError: The name is taken or empty.
        TypeError: `basis` is neither.

    Example:
    >>> uniform = kr.bases.kind_of("uniform").distribution
    >>> kr.register_basis("flat", uniform)
    >>> kr.RandLoRAConfig(basis="flat").basis
    'flat'
    """
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"The name of a basis must be a non-empty string. Received: {name!r}."
        )
    if name in (*_KINDS, "given"):
        raise ValueError(
            f"There is a basis of this name already: choose another. Received: "
            f"name={name!r}."
        )
    if isinstance(basis, Distribution):
        basis = EntrywiseBasis(basis)
    missing = [m for m in dir(BasisKind) if m[0] != "_" and not hasattr(basis, m)]
    if missing:
        raise TypeError(
            "A basis must be a `Distribution`, or have what `BasisKind` describes: "
            f"'{missing[0]}' is missing. Received: {basis!r} (of type "
            f"{type(basis).__name__})."
        )
    _KINDS[name] = basis


def resolve_sparsity(
    basis: str, sparsity: float | None, larger_side: int
) -> float | None:
    """Return the `s` of `P(+1) = P(-1) = 1/s`, or `None` for a dense basis.

    Args:
        basis: Name of a kind of bases.
        sparsity: For `basis="ternary"` a number from 2 to 2**31; `None` otherwise.
        larger_side: `l`, the larger side of the kernel as a matrix; `"very_sparse"`
            takes `sqrt(l)`, but at least 2.

    Raises:
        TypeError: If `sparsity` is not a number.
        ValueError: If `basis` is unknown, if `sparsity` is missing or out of range, or
            if it is given with another basis than `"ternary"`.

    Example:
        >>> resolve_sparsity("very_sparse", None, 4096)
        64.0
    """
    distribution = kind_of(basis).distribution
    if distribution.free_sparsity:
        if sparsity is None:
            raise ValueError(
                f"`sparsity` must be given with basis={basis!r}, for example "
                "sparsity=100. Received: sparsity=None."
            )
        return _checked_sparsity(sparsity)
    if sparsity is not None:
        _checked_sparsity(sparsity)
        raise ValueError(
            "`sparsity` can be chosen only with basis='ternary'. "
            f"Received: sparsity={sparsity!r} with basis={basis!r}."
        )
    return distribution.default_sparsity(larger_side)


def scale_of(spec: BasisSpec) -> float:
    """Return the factor that gives the drawn entries unit variance.

    It is `sqrt(s/2)` for the ternary kinds, ignoring the entries that the guard against
    zero columns sets, and 1 for the dense ones.
    """
    return 1.0 if spec.sparsity is None else math.sqrt(spec.sparsity / 2.0)


def _checked_sparsity(sparsity: Any) -> float:
    """Return a valid sparsity as a float."""
    value = real_number("sparsity", sparsity)
    if not 2.0 <= value <= _MAX_SPARSITY:
        raise ValueError(
            f"`sparsity` must be from 2 to 2**31. Received: sparsity={sparsity!r}."
        )
    return value
