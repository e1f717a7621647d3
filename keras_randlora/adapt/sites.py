"""The layers of a model and their places: path, address, number of the block.

Keras numbers layers without a name through the whole process: what is `dense` in one is
`dense_7` in another. Such a name is no address. In its stead the place among siblings
of the kind counts: the address of the first nameless `Dense` of a model is `dense`, of
the second `dense_1`, whatever Keras called them. Names that people or keras-hub gave
are their own address.
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
    """One layer of a model, or a weight that a layer holds, and where it stands.

    Attributes:
        layer: The layer.
        path: Its path as Keras has it, unique in the model.
        address: Its path in files: no part of it depends on what else the process made.
        number: The number at the end of its name; of a nameless layer its place among
            siblings of its kind, if there are several. `None` without one.
        ancestors: The layers that hold it, outermost first, the model included.
        holders: The same as sites, the model left out.
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
        """The outermost numbered layer that holds this one, models left out."""
        for holder in self.holders:
            if holder.number is not None and not _is_model(holder.layer):
                return holder
        return None

    @property
    def block_index(self) -> int | None:
        """Number of the outermost numbered block that holds the layer."""
        return None if self.block is None else self.block.number


def sites(model: keras.layers.Layer, further: Children | None = None) -> list[Site]:
    """Return every layer of a model once, in the model's order.

    Paths do not begin with the model's own name. Two layers of the same path, or of the
    same address, are told apart by `#2`, `#3`, … on the later ones.

    Args:
        model: A model, or a layer that holds others.
        further: Children that layers have beside those that Keras knows.
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
    """Makes names unique by `#2`, `#3`, … on the later ones."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    def of(self, name: str) -> str:
        self.taken[name] = self.taken.get(name, 0) + 1
        return name if self.taken[name] == 1 else f"{name}#{self.taken[name]}"


def _parts(holder: keras.layers.Layer, further: Children) -> dict[int, str]:
    """Return what the children of a layer are called in addresses, by `id`."""
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
    """Return the number of a layer, of the first nameless one of several 0."""
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
    """Whether a layer's name is what Keras makes up for its class."""
    return _NUMBER.sub("", layer.name) == _kind(layer)


def _kind(layer: keras.layers.Layer) -> str:
    """Return what Keras calls the first layer of a class (`keras.src.utils.naming`)."""
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
