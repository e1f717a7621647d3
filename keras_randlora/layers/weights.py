"""Bare weights that a layer uses in matmuls: expert banks, projections.

Such a weight is adapted through the layer that holds it, as with torch's
parametrizations and PEFT's `target_parameters`. A `HeldWeight` represents it: a small
layer with the weight as its kernel, and a child of the holder while it is adapted. The
holder then has a class that reads `weight + update` where its code reads the weight,
and saves the merged weight.

| state | the holder | the weight's layer |
|---|---|---|
| plain | its own class, reads the variable | created on request, not kept |
| adapted | reads `weight + update` | its child, with λ and γ |
"""

from __future__ import annotations

import weakref
from typing import Any

import keras

from keras_randlora.layers import store
from keras_randlora.layers.adapted import Attachment, RandLoRALayer
from keras_randlora.layers.adapter import RandLoRAAdapter
from keras_randlora.layers.kinds import adapted_class, register_layer
from keras_randlora.layers.quantized import kernel_shape
from keras_randlora.layers.variable_names import stable_names
from keras_randlora.tools import keras_internals
from keras_randlora.update import KernelLayout, read_layout

_KERNELS = ("_kernel", "kernel")
_CHILD = "randlora_of_{}"
_ADAPTED_HOLDERS: dict[tuple[type, frozenset[str]], type] = {}


class HeldWeight(keras.layers.Layer):
    """A bare weight of another layer, as a layer with this kernel.

    It owns no variable and is never called.

    Args:
        holder: The layer that holds the weight.
        attribute: The holder's attribute.
        axes: The role of each axis, such as `"batch in out"`; `None` if unknown, and
            the weight cannot be adapted.

    Attributes:
        attribute: The holder's attribute.
        axes: The role of each axis, or `None`.
    """

    bias = None  # what a plain layer with a kernel may have

    def __init__(
        self, holder: keras.layers.Layer, attribute: str, axes: str | None
    ) -> None:
        name = _names(holder)[attribute]
        super().__init__(name=name, dtype=holder.dtype_policy)
        # Bypasses Keras, which would track the variable as this layer's own.
        self.__dict__["_kernel"] = vars(holder)[attribute]
        self._holder = weakref.ref(holder)
        self.attribute = attribute
        self.axes = axes
        keras_internals.set_parent_path(self, holder.path)
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Create nothing: the weight is there."""

    # A method: Keras saves what it finds in attributes and properties.
    def holder(self) -> keras.layers.Layer:
        """Return the layer that holds the weight.

        Raises:
            RuntimeError: It is gone.
        """
        holder = self._holder()
        if holder is None:
            raise RuntimeError(f"The layer that held the weight '{self.path}' is gone.")
        return holder


class LinearWeight(HeldWeight):
    """A bare weight with known axes: a matrix, or a batch of matrices."""


class RandLoRALinearWeight(RandLoRALayer, LinearWeight):
    """A bare weight with an update; a child of the layer that holds it."""

    def build(self, input_shape: Any = None) -> None:
        """Create nothing: the weight was there before the update."""

    @staticmethod
    def layout_of(layer: Any) -> KernelLayout:
        """Return how the weight is read as a matrix.

        Raises:
            ValueError: Its axes do not match the named ones.
        """
        return read_layout(layer.axes, kernel_shape(layer))

    def reattach(self, attachment: Attachment) -> None:
        """Restore the update, and let the holder read it."""
        self.__class__ = attachment.kind  # it may be a plain one by now
        super().reattach(attachment)
        holder = self.holder()
        with keras_internals.unlocked(holder):
            setattr(holder, _CHILD.format(self.attribute), self)
        _in_order(holder)
        _choose_class(holder)

    def detach(self) -> None:
        """Make the weight plain again, held by its holder only."""
        holder, child = self.holder(), _CHILD.format(self.attribute)
        super().detach()
        if getattr(holder, child, None) is self:
            with keras_internals.unlocked(holder):
                keras_internals.untrack(holder, self)
                delattr(holder, child)
        _choose_class(holder)

    def load_own_variables(self, saved: Any) -> None:
        """Load nothing: the holder loads the weight, the child λ and γ."""

    def save_own_variables(self, saved: Any) -> None:
        """Save nothing, see `load_own_variables`."""

    def adaptation_config(self) -> dict[str, Any]:
        """Return the options, and what identifies the weight in its holder."""
        return {**super().adaptation_config(), "axes": self.axes}


register_layer(LinearWeight, RandLoRALinearWeight)


def held_weights(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Return a layer's bare weights with two or more axes, by attribute.

    Without λ and γ, and without the kernels of layers that are adapted whole.
    """
    if isinstance(layer, RandLoRAAdapter):
        return {}
    kind = own_class_of(layer)
    known = issubclass(kind, RandLoRALayer) or adapted_class(kind) is not None
    own = {id(variable) for variable in keras_internals.own_trainable_variables(layer)}
    return {
        attribute: value
        for attribute, value in vars(layer).items()
        if isinstance(value, keras.Variable)
        and id(value) in own
        and len(value.shape) > 1
        and not (known and attribute in _KERNELS)
    }


def holder_of(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Return the layer that holds a bare weight; any other layer itself."""
    return layer.holder() if isinstance(layer, HeldWeight) else layer


def own_class_of(layer: keras.layers.Layer) -> type[keras.layers.Layer]:
    """Return the class of a layer without the class of an adapted holder."""
    kind = type(layer)
    while "own_class" in vars(kind):
        kind = kind.own_class
    return kind


def adapted_weights(holder: keras.layers.Layer) -> dict[str, RandLoRALinearWeight]:
    """Return the adapted weights that a layer holds, by attribute."""
    children = keras_internals.children(holder)
    return {
        child.attribute: child
        for child in children
        if isinstance(child, RandLoRALinearWeight) and child.holder() is holder
    }


def _names(holder: keras.layers.Layer) -> dict[str, str]:
    """Return the names of a layer's weights, by attribute.

    That is the attribute if Keras has no name for a weight, or equal names for two.
    """
    weights = held_weights(holder)
    named = dict(
        zip(weights, stable_names([v.name for v in weights.values()]), strict=True)
    )
    taken = list(named.values())
    return {
        attribute: name
        if name != "variable" and f"{name}#2" not in taken and "#" not in name
        else attribute.lstrip("_")
        for attribute, name in named.items()
    }


def _in_order(holder: keras.layers.Layer) -> None:
    """Sort the weights among a holder's children by their creation.

    Compiled functions take variables in the order in which they were listed.
    """
    own = [id(variable) for variable in keras_internals.own_variables(holder)]
    weights = {id(weight): weight for weight in adapted_weights(holder).values()}

    def place(child: keras.layers.Layer) -> int:
        weight = weights.get(id(child))
        return (
            own.index(id(keras_internals.kernel_variable(weight)))
            if weight is not None
            else -1
        )

    keras_internals.sort_children(holder, place)


def _choose_class(holder: keras.layers.Layer) -> None:
    """Give a layer the class that reads its adapted weights, or its own."""
    plain = own_class_of(holder)
    attributes = frozenset(adapted_weights(holder))
    if not attributes:
        holder.__class__ = plain
        return
    key = plain, attributes
    if key not in _ADAPTED_HOLDERS:
        _ADAPTED_HOLDERS[key] = _adapted_holder(plain, attributes)
    holder.__class__ = _ADAPTED_HOLDERS[key]


def _adapted_holder(plain: Any, attributes: frozenset[str]) -> type:
    """Return the class of layers of class `plain` whose weights are adapted."""

    def save_own_variables(holder: Any, saved: Any) -> None:
        """Save the plain layer's variables, with the merged weights."""
        own: dict[str, Any] = {}
        plain.save_own_variables(holder, own)
        merged = {
            id(keras_internals.kernel_variable(weight)): weight
            for weight in adapted_weights(holder).values()
        }
        for key, value in own.items():
            weight = merged.get(id(value))
            saved[key] = value if weight is None else weight.merged_kernel()

    def load_own_variables(holder: Any, saved: Any) -> None:
        """Load the plain layer's variables; the children load λ and γ."""
        plain.load_own_variables(holder, saved)
        for weight in adapted_weights(holder).values():
            store.kernel_arrived(weight)

    methods = {
        "__module__": plain.__module__,
        "__doc__": plain.__doc__,
        "__qualname__": plain.__qualname__,
        "own_class": plain,
        "save_own_variables": save_own_variables,
        "load_own_variables": load_own_variables,
        **{name: _adapted_weight(name) for name in attributes},
    }
    return type(plain.__name__, (plain,), methods)


def _adapted_weight(attribute: str) -> property:
    """Return a property that reads an adapted weight, also while it is rebuilt."""

    def read(holder: Any) -> Any:
        child = getattr(holder, _CHILD.format(attribute), None)
        return vars(holder)[attribute] if child is None else child.kernel

    def write(holder: Any, value: Any) -> None:
        vars(holder)[attribute] = value

    return property(read, write)
