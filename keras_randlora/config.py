"""The options of `enable_randlora`, validated once and kept as one value."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from keras_randlora.bases import (
    BasisSpec,
    PairSize,
    basis_names,
    resolve_sparsity,
)
from keras_randlora.tools import finite_number, one_of, positive_integer, uint32

BasisStorage = Literal["stored", "regenerated"]
Compute = Literal["auto", "materialized", "factored"]
TrainBias = Literal["none", "adapted", "all"]
BatchSharing = Literal["none", "lambda", "gamma"]
Patterns: TypeAlias = "str | re.Pattern[str] | Sequence[str | re.Pattern[str]]"

BASIS_STORAGES = get_args(BasisStorage)
TRAIN_BIASES = get_args(TrainBias)
DEFAULT_ALPHA_PER_RANK = 20
GIVEN = "given"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """The options of one adapted layer.

    `RandLoRAConfig` describes them.
    """

    rank: int = 32
    # A number after validation, whatever was passed.
    alpha: float = None  # type: ignore[assignment]
    basis: str = "uniform"
    sparsity: float | None = None
    seed: int = 0
    num_bases: int | None = None
    dropout: float = 0.0
    basis_storage: BasisStorage = "stored"
    compute: Compute = "auto"
    shared_in_batch: BatchSharing = "none"

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "rank", positive_integer("rank", self.rank))
        alpha = DEFAULT_ALPHA_PER_RANK * self.rank if self.alpha is None else self.alpha
        set_field(self, "alpha", finite_number("alpha", alpha))
        set_field(self, "seed", uint32("seed", self.seed))
        if self.num_bases is not None:
            set_field(self, "num_bases", positive_integer("num_bases", self.num_bases))
        set_field(self, "dropout", _dropout(self.dropout))
        one_of("basis", self.basis, (*basis_names(), GIVEN))
        set_field(self, "sparsity", _sparsity(self.basis, self.sparsity))
        one_of("basis_storage", self.basis_storage, BASIS_STORAGES)
        if self.basis == GIVEN and self.basis_storage != "stored":
            raise ValueError(
                "Bases that are given cannot be drawn again: `basis_storage` must be "
                f"'stored'. Received: basis_storage={self.basis_storage!r}."
            )
        one_of("compute", self.compute, get_args(Compute))
        one_of("shared_in_batch", self.shared_in_batch, get_args(BatchSharing))

    def basis_spec(self, size: PairSize) -> BasisSpec:
        """Return what determines the entries of a pair of bases of this size."""
        sparsity = resolve_sparsity(self.basis, self.sparsity, size.larger)
        return BasisSpec(self.basis, sparsity, self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandLoRAConfig(LayerOptions):
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
            kernel, which then has a single basis.
        targets: Names, paths, globs (`"*/query"`), regular expressions
            (`"re:.*(query|key)"`) or the groups `"attention"`, `"mlp"`,
            `"experts"`, `"conv"`, `"all-linear"`. `None` lets the model choose. A
            bare weight of a layer is named by `<path of the layer>/<name>`.
        alpha: The update is scaled by `alpha / rank`. Default `20 * rank`.
        basis: Kind of the random bases: `"uniform"`, `"normal"`, `"binary"`,
            `"sparse"`, `"very_sparse"`, `"ternary"`, `"kronecker"`, whose products
            cost a small part of a dense basis's, or what `register_basis` added; or
            `"given"` for bases that come with a file and do not follow from the seed.
        sparsity: Only for `basis="ternary"`: each sign has probability
            `1 / sparsity`; at least 2.
        seed: Integer in `[0, 2**32)` that determines the bases.
        num_bases: Upper bound on the number of bases of a layer. `None` means
            `ceil(smaller_side / rank)`, which makes the update full rank.
        dropout: Rate of dropout on the adapter's input, in `[0, 1)`.
        exclude: Patterns like `targets`, subtracted from them.
        layers: Indices of the blocks to adapt. `None` means every block.
        train_bias: `"none"`, `"adapted"` (biases of adapted layers) or `"all"`.
        also_train: Patterns of layers that are fully trained and saved with the
            adapter (a classifier's head, norms).
        weight_axes: For bare weights that your own layers use in matmuls, the role of
            each axis by path or pattern: `{"*/experts/bank": "batch in out"}`.
            keras-hub's are known.
        basis_storage: `"stored"` keeps one shared pair of bases;
            `"regenerated"` draws them in each call and keeps none.
        compute: `"materialized"` forms the adapted kernel, `"factored"` passes the
            activations through the factors, `"auto"` takes the one with fewer
            operations.
        shared_in_batch: The factor that the matrices of a batch, such as the experts of
            a layer, share: `"none"`, `"lambda"` or `"gamma"`, for fewer parameters.

    Raises:
        ValueError: An option is outside its range.
        TypeError: An option has the wrong type, or there is none of that name.
    """

    # Tuples after validation, whatever was passed.
    targets: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    train_bias: TrainBias = "none"
    also_train: tuple[str, ...] = ()
    # Pairs after validation.
    weight_axes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        set_field = object.__setattr__
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
        one_of("train_bias", self.train_bias, TRAIN_BIASES)
        set_field(self, "weight_axes", _weight_axes(self.weight_axes))

    @classmethod
    def of(cls, rank: Any, targets: Any, options: dict[str, Any]) -> RandLoRAConfig:
        """Return the configuration that the arguments of `enable_randlora` describe.

        Args:
            rank: A rank, `None` for the default, or a configuration by itself.
            targets: Patterns, or `None`.
            options: The other options, by name.

        Raises:
            TypeError: An option is unknown, or is passed beside a configuration.
            ValueError: An option is outside its range.
        """
        config = options.pop("config", None)
        if isinstance(rank, RandLoRAConfig) and config is None:
            rank, config = None, rank
        if config is None:
            _require_known(options)
            if rank is not None:
                options["rank"] = rank
            return cls(targets=targets, **options)
        if not isinstance(config, RandLoRAConfig):
            raise TypeError(
                "`config` must be a `RandLoRAConfig`. Received: "
                f"{config!r} (of type {type(config).__name__})."
            )
        given = {"rank": rank, "targets": targets, **options}
        beside = [name for name, value in given.items() if value is not None]
        if beside:
            raise TypeError(
                f"A configuration holds all options: leave out {beside}, or use "
                "`dataclasses.replace(config, ...)`."
            )
        return config

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Return the options as parameters: `rank` and `targets` by position, too."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        kinds = dict.fromkeys(
            ("rank", "targets"), inspect.Parameter.POSITIONAL_OR_KEYWORD
        )
        return [
            inspect.Parameter(
                name,
                kinds.get(name, inspect.Parameter.KEYWORD_ONLY),
                default=fields[name].default,
                annotation=fields[name].type,
            )
            for name in (*kinds, *(name for name in fields if name not in kinds))
        ]

    @property
    def layer_options(self) -> LayerOptions:
        """The options of one layer."""
        names = [field.name for field in dataclasses.fields(LayerOptions)]
        return LayerOptions(**{name: getattr(self, name) for name in names})

    @property
    def trains_adapted_biases(self) -> bool:
        """Whether the biases of adapted layers are trained."""
        return self.train_bias != "none"

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name, in JSON types."""
        return json.loads(self.to_json())

    @classmethod
    def from_dict(cls, options: Any) -> RandLoRAConfig:
        """Rebuild a configuration from `to_dict`'s result.

        Raises:
            ValueError: It is not a dictionary or has unknown options.
        """
        if not isinstance(options, dict):
            raise ValueError(
                "A RandLoRA configuration must be a JSON object. "
                f"Received: {type(options).__name__}."
            )
        known = sorted(_names())
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(
                f"Unknown RandLoRA options {unknown}. This version knows {known}."
            )
        return cls(**options)

    def to_json(self) -> str:
        """Return the configuration as a JSON object with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RandLoRAConfig:
        """Rebuild a configuration from `to_json`'s text.

        Raises:
            ValueError: The text is not a JSON object or has unknown options.
        """
        return cls.from_dict(json.loads(text))


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(RandLoRAConfig)]


def _require_known(options: dict[str, Any]) -> None:
    """Refuse unknown options."""
    for name in options:
        if name not in _names():
            near = difflib.get_close_matches(name, _names(), n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise TypeError(
                f"RandLoRA has no option '{name}'.{hint} There are {_names()}."
            )


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


def _dropout(rate: Any) -> float:
    rate = finite_number("dropout", rate)
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"`dropout` must be in [0, 1). Received: dropout={rate}.")
    return rate


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


def _weight_axes(axes: Any) -> tuple[tuple[str, str], ...]:
    """Return pairs of a pattern and the roles of the axes."""
    pairs = axes.items() if isinstance(axes, Mapping) else axes
    try:
        pairs = [(pattern, roles) for pattern, roles in pairs]
    except (TypeError, ValueError):
        pairs = [(None, None)]
    if not all(isinstance(roles, str) for _, roles in pairs):
        raise TypeError(
            "`weight_axes` must map names of weights to the roles of their axes, such "
            f"as {{'*/bank': 'batch in out'}}. Received: weight_axes={axes!r}."
        )
    return tuple((_pattern("weight_axes", pattern), roles) for pattern, roles in pairs)


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
