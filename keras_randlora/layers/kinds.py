"""Registry of adaptable layers and their adapted classes."""

from __future__ import annotations

from typing import Any

import keras

from keras_randlora.layers.adapted import (
    Adaptation,
    RandLoRALayer,
    adaptation_of,
    built_with,
)
from keras_randlora.layers.quantized import float_policy, kernel_shape
from keras_randlora.update import (
    KernelLayout,
    UpdateShape,
    bank_for,
    dense_layout,
    einsum_layout,
)

_KINDS: dict[type[keras.layers.Layer], type[RandLoRALayer]] = {}
_OF_SUBCLASSES: dict[type[keras.layers.Layer], type[RandLoRALayer]] = {}


def register_layer(
    plain: type[keras.layers.Layer], adapted: type[RandLoRALayer]
) -> None:
    """Make a class of layers adaptable: `enable_randlora` then accepts them as targets.

    Subclasses of `plain` are adapted too, with their own methods before those of
    `adapted`.

    Args:
        plain: The class of the plain layers.
        adapted: A subclass of `RandLoRALayer` and `plain`, in this order, whose
            `layout_of` defines how the kernel is read as a matrix.

    Raises:
        TypeError: `adapted` is not such a class.
        ValueError: There is an adapted class for `plain` already.

    Example:
    See `examples/guides/new_layer.py` for a complete layer.

    >>> kr.register_layer(keras.layers.Dense, kr.RandLoRADense)
    Traceback (most recent call last):
    ValueError: Layers of type Dense are adapted as RandLoRADense already.
    """
    if not (
        isinstance(adapted, type)
        and issubclass(adapted, RandLoRALayer)
        and issubclass(adapted, plain)
    ):
        raise TypeError(
            "`adapted` must be a subclass of `RandLoRALayer` and of `plain`. Received: "
            f"plain={plain!r}, adapted={adapted!r}."
        )
    if plain in _KINDS:
        raise ValueError(
            f"Layers of type {plain.__name__} are adapted as "
            f"{_KINDS[plain].__qualname__} already."
        )
    if keras.saving.get_registered_name(adapted) == adapted.__name__:
        keras.saving.register_keras_serializable(adapted.__module__)(adapted)
    _KINDS[plain] = adapted
    _take_name(adapted, plain)


def adapted_class(plain: type[keras.layers.Layer]) -> type[RandLoRALayer] | None:
    """Return the adapted class for layers of class `plain`, or `None`.

    A subclass of a known class gets its own adapted class. Its methods come before
    those that add the update, so its code around `super().call` still runs.
    """
    if issubclass(plain, RandLoRALayer):
        return None
    known = next((kind for kind in plain.__mro__ if kind in _KINDS), None)
    if known is None or known is plain:
        return _KINDS.get(plain)
    if plain not in _OF_SUBCLASSES:
        _OF_SUBCLASSES[plain] = _of_subclass(plain, _KINDS[known])
    return _OF_SUBCLASSES[plain]


def adapt_layer(layer: keras.layers.Layer, adaptation: Adaptation) -> None:
    """Adapt a built plain layer, in place.

    Raises:
        ValueError: Its kind cannot be adapted.
    """
    kind = adapted_class(type(layer))
    if kind is None:
        raise ValueError(f"A layer of type {kind_name(layer)} has no linear kernel.")
    layer.__class__ = kind
    options, train_bias, bank = adaptation
    shape = UpdateShape.of_layout(layout_of(layer), options)
    own = bank or bank_for([shape], options, float_policy(layer))
    layer.attach(options, own, train_bias, shares_bank=bank is not None)


def layout_of(layer: keras.layers.Layer) -> KernelLayout:
    """Return how the kernel of a layer, plain or adapted, is read as a matrix.

    Raises:
        ValueError: It is not a product with a matrix.
    """
    adapted = isinstance(layer, RandLoRALayer)
    kind = type(layer) if adapted else adapted_class(type(layer))
    if kind is None:
        raise ValueError(f"A layer of type {kind_name(layer)} has no linear kernel.")
    return kind.layout_of(layer)


def is_linear(layer: keras.layers.Layer) -> bool:
    """Return whether a layer is adapted or can be."""
    return isinstance(layer, RandLoRALayer) or is_adaptable(layer)


def is_adaptable(layer: keras.layers.Layer) -> bool:
    """Return whether the kind of a plain layer can be adapted."""
    kind = adapted_class(type(layer))
    return kind is not None and kind.is_adaptable(layer)


def kind_name(layer: keras.layers.Layer) -> str:
    """Return the name of a layer's class; for an adapted layer the adapted class."""
    return type(layer).__qualname__.rpartition(".")[2]


def _take_name(adapted: type[RandLoRALayer], plain: type[keras.layers.Layer]) -> None:
    """Give an adapted class the plain one's `__name__`; its `__qualname__` stays.

    Keras saves the weights of layers in a list, or directly in a functional model,
    under this name. With the plain class's name, files of plain and adapted models are
    interchangeable. Registration used the adapted class's own name before.
    """
    adapted.plain_class = plain
    adapted.__name__ = plain.__name__


def _of_subclass(
    plain: type[keras.layers.Layer], base: type[RandLoRALayer]
) -> type[RandLoRALayer]:
    """Return the adapted class of a subclass of a known class."""
    name = f"RandLoRA{plain.__name__}"
    methods = {
        "__module__": plain.__module__,
        "__doc__": plain.__doc__,
        "of_subclass": True,
        "get_config": _config_of_subclass,
        "from_config": classmethod(_subclass_from_config),
    }
    adapted: Any = type(name, (plain, base), methods)
    keras.saving.register_keras_serializable("keras_randlora", _SUBCLASS)(adapted)
    # Another process has not created that class yet: there the name means this one.
    keras.saving.register_keras_serializable("keras_randlora", _SUBCLASS)(
        AdaptedSubclass
    )
    _take_name(adapted, plain)
    return adapted


def _config_of_subclass(layer: Any) -> dict[str, Any]:
    """Return the plain class, its arguments, and those of the adaptation."""
    plain = layer.plain_class
    kind = {
        "module": plain.__module__,
        "class_name": plain.__name__,
        "registered_name": keras.saving.get_registered_name(plain),
    }
    own = plain.get_config(layer)
    return {"plain": {**kind, "config": own}, **layer.adaptation_config()}


def _subclass_from_config(
    cls: type[RandLoRALayer], config: dict[str, Any]
) -> RandLoRALayer:
    """Rebuild a layer from `_config_of_subclass`'s result."""
    adaptation, rest = adaptation_of(config)
    with built_with(adaptation):
        return cls.plain_class.from_config.__func__(cls, rest["plain"]["config"])


_SUBCLASS = "RandLoRASubclass"


@keras.saving.register_keras_serializable("keras_randlora", _SUBCLASS)
class AdaptedSubclass(keras.layers.Layer):
    """Placeholder in files for the adapted class of a subclass of a registered kind."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RandLoRALayer:
        """Rebuild the adapted layer."""
        plain = type(keras.saving.deserialize_keras_object(config["plain"]))
        adapted = adapted_class(plain)
        if adapted is None:
            raise ValueError(
                f"Layers of type {plain.__name__} were adapted when the file was "
                "written, and are not known now: call `kr.register_layer` first."
            )
        return adapted.from_config(config)


@keras.saving.register_keras_serializable(package="keras_randlora")
class RandLoRADense(RandLoRALayer, keras.layers.Dense):
    """A `keras.layers.Dense` with a frozen kernel and a RandLoRA update.

    Args:
        units: Dimensionality of the output.
        rank: Rank `r` of each random basis.
        alpha: The update is scaled by `alpha / rank`; default `20 * rank`.
        basis: Kind of the bases, as in `RandLoRAConfig`.
        sparsity: For `basis="ternary"`.
        seed: Integer in `[0, 2**32)` that determines the bases.
        num_bases: Upper bound on the number of bases; default full rank.
        dropout: Rate of dropout on the adapter's input.
        basis_storage: `"stored"` or `"regenerated"`.
        compute: `"auto"`, `"materialized"` or `"factored"`.
        train_bias: Whether the bias is trained; `"none"` is `False`.
        bank: A `BasisBank` to share with other layers. By default the layer owns its
            own pair.
        **kwargs: Arguments of `keras.layers.Dense`.

    Input shape: `(..., inputs)`. Output shape: `(..., units)`.

    Raises:
        ValueError: An option is out of range.
        TypeError: An option has the wrong type.

    Example:
    >>> layer = kr.RandLoRADense(8, rank=2)
    >>> tuple(layer(np.ones((4, 6), "float32")).shape)
    (4, 8)
    >>> sorted(weight.name for weight in layer.trainable_weights)
    ['bias', 'gamma', 'lambda']
    """

    def __init__(self, units: int, rank: int | None = None, **kwargs: Any) -> None:
        super().__init__(units, rank=rank, **kwargs)

    @staticmethod
    def layout_of(layer: keras.layers.Layer) -> KernelLayout:
        """Return how the kernel is read as a matrix."""
        return dense_layout(kernel_shape(layer))


@keras.saving.register_keras_serializable(package="keras_randlora")
class RandLoRAEinsumDense(RandLoRALayer, keras.layers.EinsumDense):
    """A `keras.layers.EinsumDense` with a frozen kernel and a RandLoRA update.

    The kernel is read as a matrix: contracted axes by output axes, such as `(d, n * h)`
    for Gemma's query `"btd,ndh->btnh"`. Axes that input, kernel and output share are
    batch axes, with one update per matrix: λ and γ get one more axis.

    Args:
        equation: Einsum equation, optionally with `...`.
        output_shape: Output shape without the batch axis.
        rank: Rank `r` of each random basis.
        **kwargs: Options of `RandLoRADense`, and arguments of
            `keras.layers.EinsumDense`.

    Raises:
        ValueError: The kernel does not split into input and output axes, or an
            option is out of range.
        TypeError: An option has the wrong type.

    Example:
    >>> layer = kr.RandLoRAEinsumDense("btd,ndh->btnh", (None, 2, 3), rank=2)
    >>> tuple(layer(np.ones((1, 5, 4), "float32")).shape)
    (1, 5, 2, 3)
    """

    def __init__(
        self, equation: str, output_shape: Any, rank: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(equation, output_shape, rank=rank, **kwargs)

    @staticmethod
    def layout_of(layer: keras.layers.Layer) -> KernelLayout:
        """Return how the kernel is read as a matrix, or a batch of them.

        Raises:
            ValueError: It is not a product with matrices, or the batch is quantized.
        """
        layout = einsum_layout(layer.equation, kernel_shape(layer))
        if layout.batch is not None and layer.quantization_mode is not None:
            raise ValueError(
                f"Its kernel is a batch of {layout.batch} matrices and quantized as "
                f"'{layer.quantization_mode}'. Quantize the model without this layer, "
                "or leave it out of `targets`."
            )
        return layout


register_layer(keras.layers.Dense, RandLoRADense)
register_layer(keras.layers.EinsumDense, RandLoRAEinsumDense)
