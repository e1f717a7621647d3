"""`Dense` and `EinsumDense` layers whose frozen kernel carries a RandLoRA update."""

from __future__ import annotations

import dataclasses
import json
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_randlora.bases import DISTRIBUTIONS, BasisSpec, resolve_sparsity
from keras_randlora.config import GIVEN, RandLoRAConfig
from keras_randlora.layers.product import AdaptedProduct
from keras_randlora.layers.quantized import (
    SUPPORTED_MODES,
    dense_kernel,
    float_policy,
    frozen_kernel,
    held_arrays,
    hold,
    kernel_shape,
    quantized_alike,
    widened,
    write_kernel,
)
from keras_randlora.tools import cast
from keras_randlora.update import (
    BasisBank,
    KernelLayout,
    UpdateShape,
    dense_layout,
    einsum_layout,
    rebuilt_bank,
)

Array = Any
# What Keras calls a variable that is added without a name.
_NAMELESS = re.compile(r"variable_\d+")


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """The options of one adapted layer; its constructor's arguments.

    Attributes:
        rank: Rank of each basis.
        alpha: The update is scaled by `alpha / rank`.
        basis: Distribution of the bases.
        sparsity: Resolved sparsity of ternary bases, else `None`.
        seed: Seed of the bases.
        num_bases: Upper bound on the number of bases, `None` for full rank.
        dropout: Rate of dropout on the adapter's input.
        basis_storage: `"stored"` or `"regenerated"`.
        compute: `"auto"`, `"materialized"` or `"factored"`.
        train_bias: Whether the layer's bias is trained.
    """

    rank: int
    alpha: float
    basis: str
    sparsity: float | None
    seed: int
    num_bases: int | None
    dropout: float
    basis_storage: str
    compute: str
    train_bias: bool

    @classmethod
    def from_config(cls, config: RandLoRAConfig, train_bias: bool) -> LayerOptions:
        """Return the part of a configuration that concerns one layer."""
        names = {field.name for field in dataclasses.fields(cls)} - {"train_bias"}
        shared = {name: getattr(config, name) for name in names}
        return cls(train_bias=train_bias, **shared)

    def basis_spec(self, shapes: Sequence[UpdateShape]) -> BasisSpec:
        """Return what determines the entries of the bases that serve all `shapes`."""
        larger = max(shape.larger for shape in shapes)
        sparsity = resolve_sparsity(self.basis, self.sparsity, larger)
        return BasisSpec(self.basis, sparsity, self.seed)

    def bank_for(self, shapes: Sequence[UpdateShape], dtype: Any = None) -> BasisBank:
        """Return the smallest bank of bases that serves all `shapes`.

        Raises:
            ValueError: The bases follow from no seed.
        """
        if self.basis == GIVEN:
            raise ValueError(
                "basis='given' is for bases that come with a file, which "
                "`load_adapter` and `keras_randlora.peft.load` read. Choose one of "
                f"{list(DISTRIBUTIONS)}. Received: basis='given' without bases."
            )
        return BasisBank.for_shapes(
            shapes,
            self.basis_spec(shapes),
            storage=self.basis_storage,
            name="randlora_bank",
            dtype=dtype,
        )


class RandLoRAAdapter(keras.layers.Layer):
    """The trainable λ and γ of one layer, and the product that uses them.

    A child of the layer it adapts, so that its variables are named
    `<layer path>/randlora/lambda` and `<layer path>/randlora/gamma`. Both are
    float32 under every dtype policy.

    Attributes:
        lambda_: λ of shape `(r, n)`, starts at 0.
        gamma: γ of shape `(n, s)`, starts at `1 / s`.
        bank: The shared bases.
        options: The layer's options.
        latest_way: How the product was taken when the layer was last called or
            traced, `None` before.
        enabled_on: Returns the model that `enable_randlora` was called on, `None` if
            it is gone or the layer was built adapted.
    """

    def __init__(
        self, owner: RandLoRALayer, options: LayerOptions, bank: BasisBank
    ) -> None:
        policy = float_policy(owner)
        super().__init__(name="randlora", dtype=policy)
        self._parent_path = owner.path
        self.options = options
        self.latest_way: str | None = None
        self.enabled_on: Callable[[], keras.Model | None] = lambda: None
        self.shape = owner.update_shape(options)
        self.bank = bank
        self.product = AdaptedProduct(
            owner.kernel_layout(),
            frozen_kernel(owner),
            self.shape,
            bank,
            options.alpha / options.rank,
        )
        self.dropout = (
            keras.layers.Dropout(options.dropout, dtype=policy)
            if options.dropout
            else None
        )
        self._owner = weakref.ref(owner)
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Create λ and γ."""
        shape = self.shape
        self.lambda_ = self._factor("lambda", (shape.rank, shape.num_bases), 0.0)
        self.gamma = self._factor(
            "gamma", (shape.num_bases, shape.smaller), 1.0 / shape.smaller
        )

    def way(self, input_shape: tuple[int | None, ...]) -> str:
        """Return `"materialized"` or `"factored"` for an input of this shape."""
        tokens = self.product.layout.tokens(tuple(input_shape))
        return self.product.way(
            self.options.compute, tokens, dropout=self.dropout is not None
        )

    def multiply(
        self, inputs: Array, held: Sequence[Array], training: bool | None = None
    ) -> Array:
        """Return `inputs · (kernel + update)`.

        Args:
            inputs: The layer's input.
            held: The tensors that hold the kernel.
            training: Whether dropout is at work.
        """
        factors = (
            ops.convert_to_tensor(self.lambda_),
            ops.convert_to_tensor(self.gamma),
        )
        self.latest_way = way = self.way(inputs.shape)
        if way == "materialized" and not (self.dropout and training):
            return self.product.materialized(inputs, held, *factors)
        seen = self.dropout(inputs, training=training) if self.dropout else inputs
        base = self.product.base(inputs, held)
        if way == "factored":
            return base + self.product.factored(seen, *factors)
        return base + self.product.materialized(seen, (), *factors)

    def update(self) -> Array:
        """Return the update of the kernel, in its shape, in float32."""
        return self.product.update(
            ops.convert_to_tensor(self.lambda_),
            ops.convert_to_tensor(self.gamma),
            "float32",
        )

    def reset(self) -> None:
        """Set λ to 0 and γ to `1 / s`: the update is zero again."""
        self.lambda_.assign(np.zeros(self.lambda_.shape, "float32"))
        self.gamma.assign(np.full(self.gamma.shape, 1.0 / self.shape.smaller, "f4"))

    def save_own_variables(self, store: Any) -> None:
        """Write λ, γ, and where subtracting the update misses the base kernel.

        The layer's own slot holds the merged kernel. `merged - update` is the
        base kernel up to rounding; the entries that differ are written out, so
        that loading restores the base bit for bit where the update is computed with
        the same roundings, on another backend up to the last bit of the update.
        Where so many differ that the base takes less, and of a quantized kernel,
        which no subtraction restores, all that holds it is written out.
        """
        owner = self._layer()
        store["options"] = np.frombuffer(json.dumps(self._origin()).encode(), "uint8")
        store["lambda"] = _to_numpy(self.lambda_)
        store["gamma"] = _to_numpy(self.gamma)
        if owner.quantization_mode is None:
            base = _to_numpy(owner._kernel)
            recovered = _to_numpy(owner.unmerged_kernel(owner.merged_kernel()))
            index = np.flatnonzero(base != recovered).astype("int64")
            value = _storable(base.reshape(-1)[index])
            if index.nbytes + value.nbytes < _storable(base[:0]).itemsize * base.size:
                store["base_index"], store["base_value"] = index, value
                return
        for name, array in held_arrays(owner).items():
            store[f"base{name}"] = _storable(array)

    def load_own_variables(self, store: Any) -> None:
        """Read λ and γ and take the update out of the kernel that was loaded.

        A store without them comes from a plain layer: its kernel is the base,
        and the update is reset to zero.

        Raises:
            ValueError: λ and γ were trained with other bases or another scale, so
                that they mean another update in this layer.
        """
        if "lambda" not in store:
            self.reset()
            return
        owner = self._layer()
        ours = self._origin()
        theirs = json.loads(np.asarray(store["options"]).tobytes())
        others = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
        if others:
            trained, has = (
                ", ".join(f"{name}={options.get(name)!r}" for name in others)
                for options in (theirs, ours)
            )
            raise ValueError(
                f"The weights of layer '{owner.path}' were trained with {trained}; the "
                f"layer has {has}, which would make another update of them. Call "
                "`enable_randlora` with the options of then (bases that were given: "
                "`load_adapter` or `keras_randlora.peft.load`) on a fresh model and "
                "load the file into that: this one is loaded in part."
            )
        self.lambda_.assign(np.asarray(store["lambda"]))
        self.gamma.assign(np.asarray(store["gamma"]))
        names = self.product.kernel.names
        if f"base{names[0]}" in store:
            hold(owner, {name: np.asarray(store[f"base{name}"]) for name in names})
            return
        base = _to_numpy(owner.unmerged_kernel(owner._kernel)).copy()
        index = np.asarray(store["base_index"])
        base.reshape(-1)[index] = np.asarray(store["base_value"]).astype(base.dtype)
        owner._kernel.assign(base)

    def _origin(self) -> dict[str, Any]:
        """Return what must be equal for λ and γ to mean the same update."""
        spec = self.bank.spec
        drawn = {"sparsity": spec.sparsity, "seed": spec.seed}
        return {
            "rank": self.shape.rank,
            "num_bases": self.shape.num_bases,
            "alpha": self.options.alpha,
            "basis": GIVEN if self.bank.given else spec.basis,
            **({} if self.bank.given else drawn),
        }

    def _factor(self, name: str, shape: tuple[int, int], value: float) -> Any:
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            autocast=False,
        )

    def _layer(self) -> RandLoRALayer:
        owner = self._owner()
        if owner is None:
            raise RuntimeError(f"The layer adapted by '{self.path}' is gone.")
        return owner


class Attachment(NamedTuple):
    """What makes a plain layer an adapted one."""

    options: LayerOptions
    bank: BasisBank
    shares_bank: bool
    adapter: RandLoRAAdapter


class RandLoRALayer(keras.layers.Layer):
    """What adapted `Dense` and `EinsumDense` layers share.

    A mixin before the Keras class. The base kernel stays in the layer's own
    `kernel`, frozen whatever `trainable` is set to; λ and γ live in the child
    `layer.randlora`.
    """

    randlora: RandLoRAAdapter
    plain_class: type[keras.layers.Layer]

    def __init__(
        self,
        *args: Any,
        rank: int,
        alpha: float | None = None,
        basis: str = "uniform",
        sparsity: float | None = None,
        seed: int = 0,
        num_bases: int | None = None,
        dropout: float = 0.0,
        basis_storage: str = "stored",
        compute: str = "auto",
        train_bias: bool = True,
        bank: BasisBank | None = None,
        **kwargs: Any,
    ) -> None:
        config = RandLoRAConfig(
            rank=rank,
            alpha=alpha,
            basis=basis,
            sparsity=sparsity,
            seed=seed,
            num_bases=num_bases,
            dropout=dropout,
            basis_storage=basis_storage,
            compute=compute,
        )
        for name in ("lora_rank", "kernel_constraint"):
            if kwargs.get(name):
                raise ValueError(
                    f"`{name}` cannot be combined with RandLoRA. Received: "
                    f"{name}={kwargs[name]!r}."
                )
        super().__init__(*args, **kwargs)
        self.options = LayerOptions.from_config(config, bool(train_bias))
        self.bank = bank
        self._shares_bank = bank is not None

    def build(self, input_shape: Any) -> None:
        """Create the layer's variables, λ and γ, and its bases if it has none."""
        require_supported_mode(self, self.name)
        super().build(input_shape)
        if self.bank is None:
            self.bank = self.options.bank_for(
                [self.update_shape(self.options)], dtype=float_policy(self)
            )
        self.attach(self.options, self.bank, shares_bank=self._shares_bank)
        self.randlora.trainable = self.trainable

    def update_shape(self, options: LayerOptions) -> UpdateShape:
        """Return the sizes of the kernel's update."""
        return self.shape_for(self, options)

    def kernel_layout(self) -> KernelLayout:
        """Return how the kernel is read as a matrix."""
        return self.layout_of(self)

    @classmethod
    def shape_for(cls, layer: keras.layers.Layer, options: LayerOptions) -> UpdateShape:
        """Return the sizes of the update that a plain layer would get."""
        layout = cls.layout_of(layer)
        return UpdateShape.of_kernel(
            layout.inputs, layout.outputs, options.rank, options.num_bases
        )

    @staticmethod
    def layout_of(layer: keras.layers.Layer) -> KernelLayout:
        """Return how the kernel of a plain or adapted layer is read as a matrix.

        Raises:
            ValueError: The kernel does not split into input and output axes.
        """
        raise NotImplementedError

    def attach(
        self, options: LayerOptions, bank: BasisBank, shares_bank: bool = True
    ) -> None:
        """Add λ and γ to a built layer and freeze its kernel.

        Args:
            options: The layer's options.
            bank: Bases, large enough for the kernel.
            shares_bank: Whether other layers use the same bank.
        """
        bank.require_serves(self.update_shape(options), self.path)
        self.reattach(
            Attachment(options, bank, shares_bank, RandLoRAAdapter(self, options, bank))
        )

    def reattach(self, attachment: Attachment) -> None:
        """Put back what `detach` took off."""
        self._tracker.unlock()
        self.options = attachment.options
        self.bank = attachment.bank
        self._shares_bank = attachment.shares_bank
        self.randlora = attachment.adapter
        self._tracker.lock()
        # The product converts the kernel itself, so that under a mixed policy no copy
        # of it stays alive between the passes.
        self._kernel._autocast = False
        self.freeze_base()

    def detach(self) -> Attachment:
        """Take λ, γ and the bases off the layer; the kernel stays as it is."""
        adapter = self.randlora
        attachment = Attachment(self.options, adapter.bank, self._shares_bank, adapter)
        self._kernel._autocast = True
        self._tracker.unlock()
        for child in (self.randlora, self.bank):
            self._tracker.untrack(child)
        del self.randlora, self.bank, self.options, self._shares_bank
        self._tracker.lock()
        return attachment

    def freeze_base(self) -> None:
        """Freeze the kernel, and the bias unless it is to be trained."""
        self._kernel.trainable = False
        if self.bias is not None:
            self.bias.trainable = self.trainable and self.randlora.options.train_bias

    @property
    def trainable(self) -> bool:
        """Whether λ, γ (and the bias, if asked) are trained; never the kernel."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        if hasattr(self, "randlora"):
            self.freeze_base()

    def call(self, inputs: Array, training: bool | None = None) -> Array:
        """Return `activation(inputs · (kernel + update) + bias)`."""
        inputs = cast(inputs, self._product_dtype(inputs))
        names = self.randlora.product.kernel.names
        held = [ops.convert_to_tensor(getattr(self, name)) for name in names]
        outputs = self.randlora.multiply(inputs, held, training=training)
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs

    def __repr__(self) -> str:
        """Return Keras's form with the adapted class's own name."""
        kind, plain = type(self).__qualname__, type(self).__name__
        return super().__repr__().replace(plain, kind, 1)

    def quantized_call(self, inputs: Array, training: bool | None = None) -> Array:
        """Return what `call` does; Keras calls this where the kernel is quantized."""
        return self.call(inputs, training=training)

    def merged_kernel(self) -> Array:
        """Return `kernel + update` in the kernel's shape.

        Returns:
            In the kernel's dtype, float32 for a quantized kernel.
        """
        merged = ops.add(dense_kernel(self), self.randlora.update())
        if self.quantization_mode is not None:
            return merged
        return ops.cast(merged, self._kernel.dtype)

    def write_merged(self) -> None:
        """Assign `kernel + update` to the kernel, quantized again as it was."""
        write_kernel(self, self.merged_kernel())

    def _product_dtype(self, inputs: Array) -> str:
        """Return the dtype in which a plain layer would multiply."""
        if not keras.backend.is_float_dtype(inputs.dtype):
            return self.compute_dtype
        return keras.backend.result_type(inputs.dtype, self.compute_dtype)

    def unmerged_kernel(self, merged: Array) -> Array:
        """Return `merged - update` in the kernel's dtype and shape."""
        wide = widened(merged, self._kernel.dtype)
        base = ops.subtract(wide, self.randlora.update())
        return ops.cast(base, self._kernel.dtype)

    def save_own_variables(self, store: Any) -> None:
        """Write what a plain layer would, with the merged kernel as its kernel."""
        if self.built and self.quantization_mode is not None:
            merged = self.merged_kernel()
            quantized_alike(self, merged).save_own_variables(store)
            return
        own: dict[str, Any] = {}
        super().save_own_variables(own)
        if own:
            own["0"] = self.merged_kernel()
        for key, value in own.items():
            store[key] = value

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
        """Refuse: an adapted kernel is not quantized in place.

        Keras wraps `quantize` of each instance and calls this before it. The
        wrapper stays when a live layer is adapted; an override would not be called.
        """
        raise ValueError(
            f"Layer '{self.path}' is adapted by RandLoRA and cannot be quantized. "
            "Call `merge_randlora(model)` first, then `model.quantize(...)`."
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        bank = None
        if self._shares_bank:
            bank = keras.saving.serialize_keras_object(self.bank)
            # Keras marks a shared object when it meets it again, on a dictionary that
            # has been copied by then: the first layer would get a bank of its own.
            bank["shared_object_id"] = id(self.bank)
        return {
            **super().get_config(),
            **dataclasses.asdict(self.options),
            "bank": bank,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RandLoRALayer:
        """Rebuild the layer from `get_config`'s result."""
        return super().from_config({**config, "bank": rebuilt_bank(config.get("bank"))})


@keras.saving.register_keras_serializable(package="keras_randlora")
class RandLoRADense(RandLoRALayer, keras.layers.Dense):
    """A `keras.layers.Dense` with a frozen kernel and a RandLoRA update.

    Args:
        units: Dimensionality of the output.
        rank: Rank `r` of each random basis.
        alpha: The update is scaled by `alpha / rank`; default `20 * rank`.
        basis: Distribution of the bases, see `keras_randlora.bases`.
        sparsity: For `basis="ternary"`.
        seed: Integer in `[0, 2**32)` that determines the bases.
        num_bases: Upper bound on the number of bases; default full rank.
        dropout: Rate of dropout on the adapter's input.
        basis_storage: `"stored"` or `"regenerated"`.
        compute: `"auto"`, `"materialized"` or `"factored"`.
        train_bias: Whether the bias is trained.
        bank: A `BasisBank` to share with other layers. By default the layer
            owns a pair of its own.
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

    plain_class = keras.layers.Dense

    def __init__(self, units: int, rank: int, **kwargs: Any) -> None:
        super().__init__(units, rank=rank, **kwargs)

    @staticmethod
    def layout_of(layer: keras.layers.Layer) -> KernelLayout:
        """Return how the kernel is read as a matrix."""
        return dense_layout(kernel_shape(layer))


@keras.saving.register_keras_serializable(package="keras_randlora")
class RandLoRAEinsumDense(RandLoRALayer, keras.layers.EinsumDense):
    """A `keras.layers.EinsumDense` with a frozen kernel and a RandLoRA update.

    The kernel is seen as a matrix of its axes that are contracted with the input
    by its axes that appear in the output: `(d, n * h)` for Gemma's query
    `"btd,ndh->btnh"`.

    Args:
        equation: Einsum equation, perhaps with `...`.
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

    plain_class = keras.layers.EinsumDense

    def __init__(
        self, equation: str, output_shape: Any, rank: int, **kwargs: Any
    ) -> None:
        super().__init__(equation, output_shape, rank=rank, **kwargs)

    @staticmethod
    def layout_of(layer: keras.layers.Layer) -> KernelLayout:
        """Return how the kernel is read as a matrix."""
        return einsum_layout(layer.equation, kernel_shape(layer))


ADAPTED_CLASSES: dict[type, type[RandLoRALayer]] = {
    adapted.plain_class: adapted for adapted in (RandLoRADense, RandLoRAEinsumDense)
}

# Keras files the weights of a layer that stands in a list, or directly in a functional
# model, under its class's `__name__`. With the plain class's, the files of plain and
# adapted models interchange. Registration has taken the name of its own before.
for _plain, _adapted in ADAPTED_CLASSES.items():
    _adapted.__name__ = _plain.__name__


def require_supported_mode(layer: keras.layers.Layer, path: str) -> None:
    """Check that the layer's kernel is in floating point, int8 or int4.

    Raises:
        ValueError: It is quantized in another way.
    """
    mode = layer.quantization_mode
    if mode not in SUPPORTED_MODES:
        supported = [mode for mode in SUPPORTED_MODES if mode]
        raise ValueError(
            f"Layer '{path}' is quantized as '{mode}', which RandLoRA does not adapt: "
            f"it adapts kernels in floating point or quantized as {supported}. Load "
            "the model without quantization, then call "
            f"`model.quantize('{supported[-1]}')`."
        )


def own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return the variables that a layer holds itself, not through children."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def named_weights(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Return the variables that a layer holds itself, by names that do not change.

    Keras numbers variables without a name through the whole process, and lets two have
    the same: here the second `scale` of a layer is `scale#2`, and a nameless one is
    `variable`.
    """
    weights = own_weights(layer)
    names = stable_names([variable.name for variable in weights])
    return dict(zip(names, weights, strict=True))


def stable_names(names: Sequence[str]) -> list[str]:
    """Return the names of `named_weights` for those that Keras gave."""
    found: list[str] = []
    taken: dict[str, int] = {}
    for name in names:
        name = "variable" if _NAMELESS.fullmatch(name) else name
        taken[name] = taken.get(name, 0) + 1
        found.append(name if taken[name] == 1 else f"{name}#{taken[name]}")
    return found


def _storable(array: np.ndarray) -> np.ndarray:
    """Return an array that h5py writes: bfloat16, which it lacks, as float32."""
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def _to_numpy(array: Array) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(array))
