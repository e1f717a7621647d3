"""The layers of a model with their paths, addresses and block indices.

Keras numbers nameless layers through the whole process: `dense` in one process is
`dense_7` in another. The address in files does not depend on this. It is the position
among siblings of the same kind: the first nameless `Dense` of a model is `dense`, the
second `dense_1`, whatever Keras called them. Names that people or keras-hub gave are
kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import keras

from keras_randlora.layers import is_adaptable
from keras_randlora.tools import keras_internals

_ATTENTION = re.compile("attention|attn", re.IGNORECASE)
_NUMBER = re.compile(r"_(\d+)$")
# Further children of layers, by the layer's `id`, see `adapt.weights`.
Children = Mapping[int, Sequence[keras.layers.Layer]]


@dataclass(frozen=True)
class Site:
    """One layer of a model, or a bare weight of a layer, and its place.

    Attributes:
        layer: The layer.
        path: Its path in Keras, unique in the model.
        address: Its path in files, independent of other layers in the process.
        number: The number at the end of its name; for a nameless layer its position
            among siblings of its kind, if there are several. `None` without one.
        ancestors: The layers that hold it, outermost first, the model included.
        holders: The same as sites, without the model.
    """

    layer: keras.layers.Layer
    path: str
    address: str
    number: int | None
    ancestors: tuple[keras.layers.Layer, ...]
    holders: tuple[Site, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """The layer's own name."""
        return self.layer.name

    @property
    def linear(self) -> bool:
        """Whether the layer is a plain one of a kind that RandLoRA adapts."""
        return is_adaptable(self.layer)

    @property
    def in_attention(self) -> bool:
        """Whether the layer belongs to an attention layer."""
        holders = (holder for holder in self.ancestors if not _is_model(holder))
        names = (f"{type(holder).__name__} {holder.name}" for holder in holders)
        return any(_ATTENTION.search(name) for name in names)

    @property
    def block(self) -> Site | None:
        """The outermost numbered layer that holds this one, except models."""
        for holder in self.holders:
            if holder.number is not None and not _is_model(holder.layer):
                return holder
        return None

    @property
    def block_index(self) -> int | None:
        """Index of the outermost numbered block that holds the layer."""
        return None if self.block is None else self.block.number


def sites(model: keras.layers.Layer, further: Children | None = None) -> list[Site]:
    """Return every layer of a model once, in the model's order.

    Paths do not begin with the model's own name. Equal paths or addresses get the
    suffixes `#2`, `#3`, ….

    Args:
        model: A model, or a layer that holds others.
        further: Further children of layers, which Keras does not know.
    """
    paths, addresses = _Unique(), _Unique()
    found: dict[int, Site] = {}
    parts: dict[int, str] = {}
    for layer, ancestors in _walk(model, (), set(), further or {}):
        if id(layer) not in parts:
            parts = {**_parts(ancestors[-1], further or {}), **parts}
        holders = tuple(found[id(holder)] for holder in ancestors[1:])
        names = [holder.name for holder in (*ancestors[1:], layer)]
        path = layer.path or "/".join(names)
        path = path.removeprefix(f"{model.name}/")
        own = {a.name: parts[id(a)] for a in (*ancestors[1:], layer)}
        address = "/".join(own.get(part, part) for part in path.split("/"))
        found[id(layer)] = Site(
            layer,
            paths.of(path),
            addresses.of(address),
            _number(parts[id(layer)], layer, ancestors[-1]),
            ancestors,
            holders,
        )
    return list(found.values())


class _Unique:
    """Makes names unique by the suffixes `#2`, `#3`, …."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    def of(self, name: str) -> str:
        self.taken[name] = self.taken.get(name, 0) + 1
        return name if self.taken[name] == 1 else f"{name}#{self.taken[name]}"


def _parts(holder: keras.layers.Layer, further: Children) -> dict[int, str]:
    """Return the names of a layer's children in addresses, by `id`."""
    counts: dict[str, int] = {}
    parts = {}
    for child in _children(holder, further):
        kind = _kind(child)
        if not _is_numbered_by_keras(child):
            parts[id(child)] = child.name
            continue
        count = counts.get(kind, 0)
        parts[id(child)] = f"{kind}_{count}" if count else kind
        counts[kind] = count + 1
    return parts


def _number(
    part: str, layer: keras.layers.Layer, holder: keras.layers.Layer
) -> int | None:
    """Return the number of a layer; 0 for the first nameless one of several."""
    match = _NUMBER.search(part)
    if match:
        return int(match.group(1))
    if not _is_numbered_by_keras(layer):
        return None
    alike = [
        child
        for child in keras_internals.children(holder)
        if _kind(child) == _kind(layer) and _is_numbered_by_keras(child)
    ]
    return 0 if len(alike) > 1 else None


def _is_numbered_by_keras(layer: keras.layers.Layer) -> bool:
    """Whether Keras generated a layer's name from its class."""
    return _NUMBER.sub("", layer.name) == _kind(layer)


def _kind(layer: keras.layers.Layer) -> str:
    """Return Keras's name for the first layer of a class (`keras.src.utils.naming`)."""
    name = re.sub(r"\W+", "", type(layer).__name__)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _walk(
    layer: keras.layers.Layer,
    ancestors: tuple[keras.layers.Layer, ...],
    seen: set[int],
    further: Children,
) -> Iterator[tuple[keras.layers.Layer, tuple[keras.layers.Layer, ...]]]:
    for child in _children(layer, further):
        if id(child) in seen:
            continue
        seen.add(id(child))
        holders = (*ancestors, layer)
        yield child, holders
        yield from _walk(child, holders, seen, further)


def _children(
    layer: keras.layers.Layer, further: Children
) -> Sequence[keras.layers.Layer]:
    return [*keras_internals.children(layer), *further.get(id(layer), ())]


def _is_model(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.Model)
