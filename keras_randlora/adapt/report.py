"""Report of an adapted model: parameters per layer and in total, and bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import keras

from keras_randlora.adapt.coverage import share_adapted
from keras_randlora.adapt.sites import sites
from keras_randlora.adapt.weights import all_sites
from keras_randlora.layers import RandLoRALayer, parameter_count
from keras_randlora.tools import bytes_of, html_table, in_words
from keras_randlora.update import BasisBank

_HEADER = ("layers", "kernel", "rank", "bases", "trainable", "compute")


@dataclass(frozen=True)
class LayerReport:
    """One adapted layer.

    Attributes:
        path: The layer's address, as in `get_adapter`.
        kernel_shape: Shape of its kernel.
        inputs: Rows of the kernel as a matrix.
        outputs: Columns of the kernel as a matrix.
        rank: Rank of each basis.
        num_bases: Number of bases.
        trainable: Trainable parameters of the update, λ and γ.
        compute: `"auto"`, `"materialized"` or `"factored"`.
        way: `"materialized"` or `"factored"`, from the latest call or trace; `None`
            before.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> layer = kr.enable_randlora(model, rank=2, targets="d").layers[0]
    >>> layer.path, layer.kernel_shape, layer.num_bases, layer.trainable
    ('d', (6, 4), 2, 12)
    """

    path: str
    kernel_shape: tuple[int, ...]
    inputs: int
    outputs: int
    rank: int
    num_bases: int
    trainable: int
    compute: str
    way: str | None = None

    @property
    def name(self) -> str:
        """The layer's own name."""
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Report:
    """Parameters and bytes of an adapted model.

    Attributes:
        layers: The adapted layers, in the model's order.
        adapter: Parameters of λ and γ.
        trainable: All trainable parameters: the adapter's, and biases and layers
            that are fully trained.
        total: Parameters of the model without the adapter and the bases; quantized
            kernels count as in floating point.
        basis_bytes: Bytes of the stored bases.
        adapter_bytes: Bytes of the trained values in an adapter file.
        coverage: The adapted share of the weights used in matmuls, 1 for all;
            embeddings, norms and routers of experts do not count. `summary` shows it.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> report = kr.enable_randlora(model, rank=2, targets="d")
    >>> report.trainable, report.total, report.adapter_bytes, report.basis_bytes
    (12, 28, 48, 128)
    """

    layers: tuple[LayerReport, ...]
    adapter: int
    trainable: int
    total: int
    basis_bytes: int
    adapter_bytes: int
    coverage: float | None = None

    @property
    def share(self) -> float:
        """Trainable parameters as a fraction of the model's."""
        return self.trainable / self.total

    def __str__(self) -> str:
        """Return a table with one row per kind of adapted layer."""
        rows = self._rows()
        width = max([40, *(len(label) for label, *_ in rows)])
        table = [
            _line(width, label, shape, rank, bases, f"{count:,}", compute)
            for label, shape, rank, bases, count, compute in rows
        ]
        return "\n".join([_line(width, *_HEADER), *table, *self._totals()])

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        return html_table(_HEADER, self._rows(), self._totals())

    def _rows(self) -> list[tuple[str, str, int, int, int, str]]:
        """Return the table's cells, one row per kind of layer."""
        rows = []
        for (name, shape, rank, bases, compute), group in self._kinds().items():
            count = sum(layer.trainable for layer in group)
            label = f"{name} × {len(group)}" if len(group) > 1 else name
            rows.append((label, str(shape), rank, bases, count, compute))
        return rows

    def _totals(self) -> list[str]:
        """Return the lines below the table."""
        return [
            f"{len(self.layers)} adapted layers, {self.adapter:,} parameters of λ and "
            f"γ; {self.trainable:,} trainable in all, {self.share:.3%} of "
            f"{self.total:,}.",
            *self._coverage(),
            f"Adapter file {in_words(self.adapter_bytes)}, stored bases "
            f"{in_words(self.basis_bytes)}.",
        ]

    def _coverage(self) -> list[str]:
        if self.coverage is None:
            return []
        return [f"Adapts {self.coverage:.1%} of the weights used in matmuls."]

    def _kinds(self) -> dict[tuple, list[LayerReport]]:
        kinds: dict[tuple, list[LayerReport]] = {}
        for layer in self.layers:
            compute = layer.way or layer.compute
            key = layer.name, layer.kernel_shape, layer.rank, layer.num_bases, compute
            kinds.setdefault(key, []).append(layer)
        return kinds


def summary(model: keras.Model) -> Report:
    """Return the report of an adapted model; print it for a table.

    Raises:
        ValueError: No layer of the model is adapted.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> print(kr.summary(model))
    layers               kernel              rank  bases     trainable  compute
    d                    (6, 4)                 2      2            12  auto
    1 adapted layers, 12 parameters of λ and γ; 12 trainable in all, 42.857% of 28.
    Adapts 100.0% of the weights used in matmuls.
    Adapter file 48 B, stored bases 128 B.
    """
    everything = all_sites(model, {})
    adapted = [s for s in everything if isinstance(s.layer, RandLoRALayer)]
    if not adapted:
        raise ValueError(
            f"Model '{model.name}' has no layer adapted by RandLoRA. Call "
            "`enable_randlora(model, ...)` first."
        )
    banks = [s.layer for s in everything if isinstance(s.layer, BasisBank)]
    layers = tuple(_layer_report(site.address, site.layer) for site in adapted)
    adapter = sum(layer.trainable for layer in layers)
    return Report(
        layers=layers,
        adapter=adapter,
        trainable=_count(model.trainable_weights),
        total=parameter_count([model, *(s.layer for s in sites(model))]),
        basis_bytes=sum(bytes_of(v) for bank in banks for v in bank.weights),
        adapter_bytes=sum(map(bytes_of, model.trainable_weights)),
        coverage=share_adapted(everything),
    )


def _layer_report(path: str, layer: RandLoRALayer) -> LayerReport:
    shape = layer.randlora.shape
    return LayerReport(
        path=path,
        kernel_shape=layer.kernel_layout().kernel_shape,
        inputs=shape.inputs,
        outputs=shape.outputs,
        rank=shape.rank,
        num_bases=shape.num_bases,
        trainable=shape.trainable,
        compute=layer.options.compute,
        way=layer.randlora.latest_way,
    )


def _count(variables: list[keras.Variable]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def _line(
    width: int,
    label: str,
    shape: object,
    rank: object,
    bases: object,
    count: str,
    compute: str,
) -> str:
    numbers = f"{rank!s:>5} {bases!s:>6} {count:>13}"
    return f"{label:<{width}} {shape!s:<18} {numbers}  {compute}"
