"""Base class of adapted layers: a frozen kernel and its update."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_randlora.config import TRAIN_BIASES, LayerOptions
from keras_randlora.layers import store
from keras_randlora.layers.adapter import RandLoRAAdapter
from keras_randlora.layers.divided import merged_in_parts
from keras_randlora.layers.quantized import (
    dense_kernel,
    float_policy,
    quantized_alike,
    require_supported_mode,
    widened,
)
from keras_randlora.tools import cast, is_divided, is_ragged, keras_internals
from keras_randlora.update import (
    BasisBank,
    KernelLayout,
    UpdateShape,
    bank_for,
    rebuilt_bank,
)

Array = Any
_OPTION_NAMES = tuple(field.name for field in dataclasses.fields(LayerOptions))


class Adaptation(NamedTuple):
    """The arguments of an adapted layer beside those of its plain class.

    Attributes:
        options: The options of the layer.
        train_bias: Whether its bias is trained.
        bank: The bases to share with other layers, `None` for its own pair.
    """

    options: LayerOptions
    train_bias: bool
    bank: BasisBank | None


class Attachment(NamedTuple):
    """State that turns a plain layer into an adapted one, see `attachment`."""

    kind: type[RandLoRALayer]
    options: LayerOptions
    train_bias: bool
    bank: BasisBank
    shares_bank: bool
    adapter: RandLoRAAdapter


# For constructors of classes that take no arguments of RandLoRA.
_WAITING: ContextVar[Adaptation | None] = ContextVar("_WAITING", default=None)


class RandLoRALayer(keras.layers.Layer):
    """Base class of adapted layers.

    A mixin before the Keras class. The base kernel stays a variable of the layer,
    frozen whatever `trainable` is set to; λ and γ are in the child `layer.randlora`.
    A new kind of layer derives from it, see `register_layer`.

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> layer = model.get_layer("d")
    >>> isinstance(layer, kr.RandLoRALayer), layer.kernel_layout().outputs
    (True, 4)

    Attributes:
        plain_class: The class of the layer without RandLoRA.
        of_subclass: Whether `plain_class` is a subclass of a registered kind.
        randlora: The child with λ and γ.
        options: The options of the layer.
        train_bias: Whether its bias is trained.
        bank: The bases.
    """

    randlora: RandLoRAAdapter
    plain_class: type[keras.layers.Layer]
    of_subclass = False

    def __init__(
        self,
        *args: Any,
        bank: BasisBank | None = None,
        train_bias: bool | str = True,
        **kwargs: Any,
    ) -> None:
        given = {name: kwargs.pop(name) for name in _OPTION_NAMES if name in kwargs}
        adaptation = _WAITING.get() or Adaptation(
            LayerOptions(**given), _trains_bias(train_bias), bank
        )
        for name in ("lora_rank", "kernel_constraint"):
            if kwargs.get(name):
                raise ValueError(
                    f"`{name}` cannot be combined with RandLoRA. Received: "
                    f"{name}={kwargs[name]!r}."
                )
        super().__init__(*args, **kwargs)
        self.options, self.train_bias = adaptation.options, adaptation.train_bias
        self.bank: Any = adaptation.bank
        self._shares_bank = adaptation.bank is not None

    def build(self, input_shape: Any) -> None:
        """Create the layer's variables, λ and γ, and its own bases if not shared."""
        require_supported_mode(self, self.name)
        super().build(input_shape)
        options = self.options
        bank = self.bank or bank_for(
            [self.update_shape(options)], options, float_policy(self)
        )
        self.attach(options, bank, self.train_bias, shares_bank=self._shares_bank)
        self.randlora.trainable = self.trainable

    def update_shape(self, options: LayerOptions) -> UpdateShape:
        """Return the sizes of the update."""
        return UpdateShape.of_layout(self.kernel_layout(), options)

    def kernel_layout(self) -> KernelLayout:
        """Return how the kernel is read as a matrix."""
        return self.layout_of(self)

    @staticmethod
    def layout_of(layer: keras.layers.Layer) -> KernelLayout:
        """Return how the kernel of a plain or adapted layer is read as a matrix.

        Raises:
            ValueError: The kernel does not split into input and output axes.
        """
        raise NotImplementedError

    @staticmethod
    def is_adaptable(layer: keras.layers.Layer) -> bool:
        """Return whether a plain layer of this kind has a kernel that can be adapted.

        Globs and groups skip a layer without one; naming it raises an error.
        """
        return True

    # Attaching and detaching

    def attach(
        self,
        options: LayerOptions,
        bank: BasisBank,
        train_bias: bool,
        shares_bank: bool = True,
    ) -> None:
        """Add λ and γ to a built layer and freeze its kernel.

        Args:
            options: The layer's options.
            bank: Bases that are large enough for the kernel.
            train_bias: Whether the bias is trained.
            shares_bank: Whether other layers use the same bank.
        """
        bank.require_serves(self.update_shape(options), self.path)
        adapter = RandLoRAAdapter(self, options, bank)
        self.reattach(
            Attachment(type(self), options, train_bias, bank, shares_bank, adapter)
        )

    # A method: Keras saves what it finds in properties.
    def attachment(self) -> Attachment:
        """Return the state that `reattach` restores after `detach`."""
        return Attachment(
            type(self),
            self.options,
            self.train_bias,
            self.bank,
            self._shares_bank,
            self.randlora,
        )

    def reattach(self, attachment: Attachment) -> None:
        """Restore what `detach` removed, also if it was interrupted."""
        self.__class__ = attachment.kind
        with keras_internals.unlocked(self):
            self.options = attachment.options
            self.train_bias = attachment.train_bias
            self.bank = attachment.bank
            self._shares_bank = attachment.shares_bank
            self.randlora = attachment.adapter
        # The product converts the kernel itself, so that under a mixed policy no copy
        # of it stays alive between the passes.
        keras_internals.set_autocast(keras_internals.kernel_variable(self), False)
        self.freeze_base()

    def detach(self) -> None:
        """Make the layer plain again; its kernel is unchanged."""
        keras_internals.set_autocast(keras_internals.kernel_variable(self), True)
        with keras_internals.unlocked(self):
            for child in (self.randlora, self.bank):
                keras_internals.untrack(self, child)
            del self.randlora, self.bank
            del self.options, self.train_bias, self._shares_bank
        self.__class__ = self.plain_class

    def freeze_base(self) -> None:
        """Freeze the kernel, and the bias unless it is trained."""
        keras_internals.kernel_variable(self).trainable = False
        if self.bias is not None:
            self.bias.trainable = self.trainable and self.train_bias

    @property
    def trainable(self) -> bool:
        """Whether λ, γ (and the bias, if requested) are trained; never the kernel."""
        return keras_internals.own_flag(self)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        if hasattr(self, "randlora"):
            self.freeze_base()

    # Computing

    @property
    def kernel(self) -> Array:
        """The adapted kernel, `kernel + update`, with a gradient for λ and γ.

        Calling the layer uses less memory than reading this. Keras's own LoRA defines
        `kernel` likewise (`keras/src/layers/core/dense.py`).

        Returns:
            In the kernel's shape and dtype; inside a call in the call's dtype, for a
            quantized kernel in the compute dtype.
        """
        if not hasattr(self, "randlora"):
            raise AttributeError("You must build the layer before accessing `kernel`.")
        kernel = self.randlora.kernel(self._held())
        if self.quantization_mode is not None:
            return cast(kernel, self.compute_dtype)
        return keras_internals.autocast(kernel)

    @kernel.setter
    def kernel(self, variable: keras.Variable) -> None:
        self.__dict__["kernel"] = variable  # of layers that hold it under this name

    def call(self, inputs: Array, training: bool | None = None) -> Array:
        """Return `activation(inputs · (kernel + update) + bias)`."""
        if is_ragged(inputs):
            raise ValueError(
                f"Layer '{self.path}' takes no ragged tensor, as Keras's Dense and "
                "EinsumDense take none: pad the rows to one length and mask them. "
                f"Received: inputs of type {type(inputs).__name__}."
            )
        inputs = cast(inputs, self._product_dtype(inputs))
        outputs = self.randlora.multiply(inputs, self._held(), training=training)
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs

    def quantized_call(self, inputs: Array, training: bool | None = None) -> Array:
        """Return the result of `call`; Keras calls this for quantized kernels."""
        return self.call(inputs, training=training)

    def merged_kernel(self) -> Array:
        """Return `kernel + update` in the kernel's shape.

        Returns:
            In the kernel's dtype, float32 for a quantized kernel.
        """
        kernel = keras_internals.kernel_variable(self)
        if self.quantization_mode is None and is_divided(kernel):
            return merged_in_parts(self)
        base = dense_kernel(self)
        merged = base + self._update_like(base)
        if self.quantization_mode is not None:
            return merged
        return ops.cast(merged, kernel.dtype)

    def unmerged_kernel(self, merged: Array) -> Array:
        """Return `merged - update` in the kernel's dtype and shape."""
        dtype = keras_internals.kernel_variable(self).dtype
        merged = ops.convert_to_tensor(widened(merged, dtype))
        base = merged - self._update_like(merged)
        return ops.cast(base, dtype)

    def _update_like(self, kernel: Array) -> Array:
        """Return the update in the dtype of a kernel, for `+` and `-`.

        On torch `ops.add` of Keras 3.16 gives float32 also for two tensors in float64.
        """
        dtype = keras.backend.standardize_dtype(kernel.dtype)
        return cast(self.randlora.update(), dtype)

    def _held(self) -> list[Array]:
        variables = self.randlora.product.kernel.variables(self)
        return [ops.convert_to_tensor(variable) for variable in variables]

    def _product_dtype(self, inputs: Array) -> str:
        """Return the dtype of a plain layer's matmul."""
        if not keras.backend.is_float_dtype(inputs.dtype):
            return self.compute_dtype
        return keras.backend.result_type(inputs.dtype, self.compute_dtype)

    # Saving, see `layers.store`

    def save_own_variables(self, saved: Any) -> None:
        """Save the plain layer's variables, with the merged kernel as the kernel."""
        if self.built and self.quantization_mode is not None:
            merged = self.merged_kernel()
            quantized_alike(self, merged).save_own_variables(saved)
            return
        own: dict[str, Any] = {}
        super().save_own_variables(own)
        if own:
            own["0"] = self.merged_kernel()
        for key, value in own.items():
            saved[key] = value

    def load_own_variables(self, saved: Any) -> None:
        """Load the plain layer's variables; the child loads λ and γ."""
        super().load_own_variables(saved)
        if hasattr(self, "randlora"):
            store.kernel_arrived(self)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config = super().get_config()
        # The adapted class of a subclass keeps both apart, see `layers.kinds`.
        return config if self.of_subclass else {**config, **self.adaptation_config()}

    def adaptation_config(self) -> dict[str, Any]:
        """Return the constructor's arguments that the plain class does not have."""
        bank = None
        if self._shares_bank:
            bank = keras.saving.serialize_keras_object(self.bank)
            # Keras marks a shared object when it meets it again, on a dictionary that
            # has been copied by then: the first layer would get a bank of its own.
            bank["shared_object_id"] = id(self.bank)
        options = dataclasses.asdict(self.options)
        return {**options, "train_bias": self.train_bias, "bank": bank}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RandLoRALayer:
        """Rebuild the layer from `get_config`'s result."""
        return super().from_config({**config, "bank": rebuilt_bank(config.get("bank"))})

    # Operations that adapted layers refuse

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: the layer is already adapted.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"Layer '{self.path}' is adapted by RandLoRA and cannot take Keras's "
            "LoRA as well. Call `disable_randlora(model)` or "
            "`merge_randlora(model)` first."
        )

    def _check_quantize_args(self, *args: Any) -> None:
        """Refuse: an adapted kernel cannot be quantized in place.

        Keras wraps `quantize` of each instance and calls this first. The wrapper stays
        when a live layer is adapted, so an override of `quantize` would not be called.
        """
        raise ValueError(
            f"Layer '{self.path}' is adapted by RandLoRA and cannot be quantized. "
            "Call `merge_randlora(model)` first, then `model.quantize(...)`."
        )

    def __repr__(self) -> str:
        """Return Keras's form with the adapted class's own name."""
        kind, plain = type(self).__qualname__, type(self).__name__
        return super().__repr__().replace(plain, kind, 1)


@contextlib.contextmanager
def built_with(adaptation: Adaptation) -> Iterator[None]:
    """Build the layers of a block with this adaptation.

    For classes whose constructor takes no arguments of RandLoRA.
    """
    token = _WAITING.set(adaptation)
    try:
        yield
    finally:
        _WAITING.reset(token)


def adaptation_of(config: dict[str, Any]) -> tuple[Adaptation, dict[str, Any]]:
    """Split a layer's configuration into the adaptation and the rest."""
    rest = dict(config)
    options = {name: rest.pop(name) for name in _OPTION_NAMES if name in rest}
    bank, train_bias = rebuilt_bank(rest.pop("bank")), rest.pop("train_bias")
    return Adaptation(LayerOptions(**options), train_bias, bank), rest


def _trains_bias(train_bias: Any) -> bool:
    """Return whether a layer's own bias is trained."""
    if isinstance(train_bias, bool):
        return train_bias
    if train_bias not in TRAIN_BIASES:
        raise ValueError(
            "`train_bias` of a layer must be True or False, or one of "
            f"{list(TRAIN_BIASES)}. Received: train_bias={train_bias!r}."
        )
    return train_bias != "none"
