"""The options of `enable_randlora`, validated once and kept as one value."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import re
from collections.abc import Iterable, Sequence
from typing import Any

from keras_randlora.bases import DISTRIBUTIONS, resolve_sparsity

BASIS_STORAGES = ("stored", "regenerated")
COMPUTES = ("auto", "materialized", "factored")
TRAIN_BIASES = ("none", "adapted", "all")
DEFAULT_ALPHA_PER_RANK = 20
GIVEN = "given"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandLoRAConfig:
    """Options of a RandLoRA adaptation.

    The defaults follow Hugging Face PEFT's `RandLoraConfig` (rank 32, alpha
    `20 * rank`) and section 4 of the paper.

    Example:
    >>> config = kr.RandLoRAConfig(rank=8, targets=["query", "value"])
    >>> config.alpha
    160.0
    >>> kr.RandLoRAConfig.from_json(config.to_json()) == config
    True

    Attributes:
        rank: Rank `r` of each random basis. More rank means fewer bases and
            *fewer* trainable parameters. May exceed the smaller side of a
            kernel, which then gets a single basis.
        targets: Names, paths, globs (`"*/query"`), regular expressions
            (`"re:.*(query|key)"`) or the groups `"attention"`, `"mlp"`,
            `"all-linear"`. `None` lets the model choose.
        alpha: The update is scaled by `alpha / rank`. Default `20 * rank`.
        basis: Distribution of the random bases, a key of
            `keras_randlora.bases.DISTRIBUTIONS`; or `"given"` for bases that come
            with a file and do not follow from the seed.
        sparsity: Only for `basis="ternary"`: each sign has probability
            `1 / sparsity`; at least 2.
        seed: Integer in `[0, 2**32)` that determines the bases.
        num_bases: Upper bound on the number of bases of a layer. `None` means
            `ceil(smaller_side / rank)`, which makes the update full rank.
        dropout: Rate of dropout on the adapter's input, in `[0, 1)`.
        exclude: Patterns like `targets`, subtracted from them.
        layers: Indices of the blocks to adapt. `None` means every block.
        train_bias: `"none"`, `"adapted"` (biases of adapted layers) or `"all"`.
        also_train: Patterns of layers trained as they are and saved with the
            adapter (a classifier's head, norms).
        basis_storage: `"stored"` keeps one shared pair of bases;
            `"regenerated"` draws them in each call and keeps none.
        compute: `"materialized"` forms the adapted kernel, `"factored"` sends
            the activations through the factors, `"auto"` counts operations.

    Raises:
        ValueError: An option is outside its range.
        TypeError: An option has the wrong type.
    """

    rank: int = 32
    targets: tuple[str, ...] | None = None
    alpha: float | None = None
    basis: str = "uniform"
    sparsity: float | None = None
    seed: int = 0
    num_bases: int | None = None
    dropout: float = 0.0
    exclude: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    train_bias: str = "none"
    also_train: tuple[str, ...] = ()
    basis_storage: str = "stored"
    compute: str = "auto"

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "rank", positive_integer("rank", self.rank))
        set_field(self, "alpha", _alpha(self.alpha, self.rank))
        set_field(self, "seed", _seed(self.seed))
        if self.num_bases is not None:
            set_field(self, "num_bases", positive_integer("num_bases", self.num_bases))
        set_field(self, "dropout", _dropout(self.dropout))
        set_field(self, "layers", _block_indices(self.layers))
        set_field(self, "exclude", _patterns("exclude", self.exclude) or ())
        set_field(self, "also_train", _patterns("also_train", self.also_train) or ())
        targets = _patterns("targets", self.targets)
        if targets == ():
            raise ValueError(
                "`targets` must name at least one layer, or be None for the "
                "model's own choice. Received: an empty list."
            )
        set_field(self, "targets", targets)
        _one_of("basis", self.basis, (*DISTRIBUTIONS, GIVEN))
        set_field(self, "sparsity", _sparsity(self.basis, self.sparsity))
        _one_of("train_bias", self.train_bias, TRAIN_BIASES)
        _one_of("basis_storage", self.basis_storage, BASIS_STORAGES)
        if self.basis == GIVEN and self.basis_storage != "stored":
            raise ValueError(
                "Bases that are given cannot be drawn again: `basis_storage` must be "
                f"'stored'. Received: basis_storage={self.basis_storage!r}."
            )
        _one_of("compute", self.compute, COMPUTES)

    def to_json(self) -> str:
        """Return the configuration as a JSON object with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RandLoRAConfig:
        """Rebuild a configuration from `to_json`'s text.

        Raises:
            ValueError: The text is not a JSON object or has unknown options.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError(
                "A RandLoRA configuration must be a JSON object. "
                f"Received: {type(fields).__name__}."
            )
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(
                f"Unknown RandLoRA options {unknown}. This version knows "
                f"{sorted(known)}."
            )
        return cls(**fields)


def positive_integer(name: str, value: Any) -> int:
    """Return `value` as an `int`, or raise naming `name`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"`{name}` must be a positive integer. Received: {name}={value!r} "
            f"(of type {type(value).__name__})."
        )
    if int(value) <= 0:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value}."
        )
    return int(value)


def _alpha(alpha: Any, rank: int) -> float:
    if alpha is None:
        return float(DEFAULT_ALPHA_PER_RANK * rank)
    return _finite_number("alpha", alpha)


def _sparsity(basis: str, sparsity: Any) -> float | None:
    if basis != GIVEN:
        resolved = resolve_sparsity(basis, sparsity, larger_side=4)
        return None if sparsity is None else resolved
    if sparsity is not None:
        raise ValueError(
            "`sparsity` can be chosen only with basis='ternary'. Received: "
            f"sparsity={sparsity!r} with basis='given'."
        )
    return None


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(
            "`seed` must be an integer in [0, 2**32). Received: "
            f"seed={seed!r} (of type {type(seed).__name__})."
        )
    if not 0 <= int(seed) < 2**32:
        raise ValueError(
            f"`seed` must be an integer in [0, 2**32). Received: seed={seed}."
        )
    return int(seed)


def _dropout(rate: Any) -> float:
    rate = _finite_number("dropout", rate)
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"`dropout` must be in [0, 1). Received: dropout={rate}.")
    return rate


def _finite_number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"`{name}` must be a number. Received: {name}={value!r} "
            f"(of type {type(value).__name__})."
        )
    if not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite. Received: {name}={value}.")
    return float(value)


def _block_indices(layers: Any) -> tuple[int, ...] | None:
    if layers is None:
        return None
    if isinstance(layers, numbers.Integral) and not isinstance(layers, bool):
        layers = (layers,)
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise TypeError(
            "`layers` must be block indices such as [0, 1]. Received: "
            f"layers={layers!r}."
        )
    indices = tuple(layers)
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, numbers.Integral):
            raise TypeError(
                "`layers` must hold integers (block indices). Received: "
                f"{index!r} (of type {type(index).__name__})."
            )
        if index < 0:
            raise ValueError(
                f"`layers` must hold indices of at least 0. Received: {index}."
            )
    if not indices:
        raise ValueError(
            "`layers` must hold at least one block index, or be None for all. "
            "Received: an empty list."
        )
    return tuple(int(index) for index in indices)


def _patterns(name: str, patterns: Any) -> tuple[str, ...] | None:
    if patterns is None:
        return None
    if isinstance(patterns, (str, re.Pattern)):
        patterns = (patterns,)
    if not isinstance(patterns, Sequence):
        raise TypeError(
            f"`{name}` must be a string or a list of strings. Received: "
            f"{name}={patterns!r} (of type {type(patterns).__name__})."
        )
    return tuple(_pattern(name, pattern) for pattern in patterns)


def _pattern(name: str, pattern: Any) -> str:
    if isinstance(pattern, re.Pattern):
        if pattern.flags != re.compile(pattern.pattern).flags:
            raise ValueError(
                f"`{name}` holds an expression compiled with flags. Write them in the "
                f"expression, for instance 're:(?i)query'. Received: {pattern!r}."
            )
        pattern = f"re:{pattern.pattern}"
    if not isinstance(pattern, str) or not pattern:
        raise TypeError(
            f"`{name}` must hold non-empty strings. Received: {pattern!r} "
            f"(of type {type(pattern).__name__})."
        )
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            raise ValueError(
                f"`{name}` holds an invalid regular expression {pattern!r}: {error}."
            ) from error
    return pattern


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"`{name}` must be one of {list(allowed)}. Received: {name}={value!r}."
        )
