"""The trainable λ and γ of one layer, and the product that uses them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_randlora.config import LayerOptions
from keras_randlora.layers import store
from keras_randlora.layers.formed import formed_kernel
from keras_randlora.layers.product import AdaptedProduct
from keras_randlora.layers.quantized import float_policy, frozen_kernel
from keras_randlora.tools import (
    assign,
    cast,
    in_graph,
    is_sparse,
    keras_internals,
    to_dense,
)
from keras_randlora.update import BasisBank

if TYPE_CHECKING:
    from keras_randlora.layers.adapted import RandLoRALayer

Array = Any


class RandLoRAAdapter(keras.layers.Layer):
    """The trainable λ and γ of one layer, and the product that uses them.

    A child of the layer it adapts, so that its variables are named
    `<layer path>/randlora/lambda` and `<layer path>/randlora/gamma`. Both are
    float32 under every dtype policy.

    Attributes:
        lambda_: λ of shape `(r, n)`, in a batch `(E, r, n)`; starts at 0.
        gamma: γ of shape `(n, s)`, in a batch `(E, n, s)`; starts at `1 / s`.
        bank: The shared bases.
        options: The layer's options.
        active: Whether the update is applied; `False` within `base_only`.
        zeroed: Whether λ is 0 while it is not.
        latest_way: `"materialized"` or `"factored"`, from the latest call or trace;
            `None` before.
        enabled_on: Returns the model that `enable_randlora` was called on, `None` if
            it is gone or the layer was built adapted.
        arrivals: The parts of a weights file loaded so far, see `layers.store`.
    """

    def __init__(
        self, owner: RandLoRALayer, options: LayerOptions, bank: BasisBank
    ) -> None:
        policy = float_policy(owner)
        super().__init__(name="randlora", dtype=policy)
        keras_internals.set_parent_path(self, owner.path)
        self.options = options
        self.active = True
        self.zeroed = False
        self.latest_way: str | None = None
        self.enabled_on: Callable[[], keras.Model | None] = lambda: None
        self.arrivals = store.Arrivals()
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
        self.lambda_ = self._factor("lambda", shape.lambda_shape, 0.0)
        self.gamma = self._factor("gamma", shape.gamma_shape, 1.0 / shape.smaller)

    def way(self, input_shape: tuple[int | None, ...]) -> str:
        """Return `"materialized"` or `"factored"` for an input of this shape."""
        tokens = self.product.layout.tokens(tuple(input_shape))
        return self.product.way(
            self.options.compute, tokens, dropout=self.dropout is not None
        )

    def multiply(
        self, inputs: Array, held: Sequence[Array], training: bool | None = None
    ) -> Array:
        """Return `inputs · (kernel + update)`, `inputs · kernel` if not active.

        Args:
            inputs: The layer's input. A sparse matrix stays sparse, as in a plain
                `Dense`; with dropout or a quantized kernel it becomes dense, as do
                other sparse tensors.
            held: The tensors that hold the kernel.
            training: Whether dropout is active.
        """
        if is_sparse(inputs):
            if self.product.takes_sparse(inputs) and not (self.dropout and training):
                kernel = cast(self.kernel(held), inputs.dtype)
                return self.product.layout.apply(inputs, kernel)
            inputs = to_dense(inputs)
        if self._is_off():
            return self.product.base(inputs, held)
        if (formed := formed_kernel(self)) is not None:
            return self.product.with_kernel(inputs, formed)
        self.latest_way = way = self.way(inputs.shape)
        at_once = way == "materialized" and not (self.dropout and training)
        if at_once and self.shape.batch is not None:
            return self.product.with_kernel(inputs, self.kernel(held))
        if at_once:
            return self.product.materialized(inputs, held, *self._factors())
        seen = self.dropout(inputs, training=training) if self.dropout else inputs
        base = self.product.base(inputs, held)
        if self.shape.batch is not None:
            update = self.kernel(held) - self.product.frozen(held)
            return base + self.product.with_kernel(seen, update)
        if way == "factored":
            return base + self.product.factored(seen, *self._factors())
        return base + self.product.materialized(seen, (), *self._factors())

    def kernel(self, held: Sequence[Array]) -> Array:
        """Return `kernel + update`, `kernel` if not active, in the kernel's shape.

        Args:
            held: The tensors that hold the kernel.
        """
        if self._is_off():
            return self.product.frozen(held)
        if (formed := formed_kernel(self)) is not None:
            return formed
        self.latest_way = self.latest_way or "materialized"
        return self.product.kernel_with_update(held, *self._factors())

    def update(self) -> Array:
        """Return the update of the kernel, in its shape, in float32."""
        return self.product.update(*self._factors(), "float32")

    def reset(self) -> None:
        """Set λ to 0 and γ to `1 / s`: the update is zero again."""
        assign(self.lambda_, np.zeros(self.lambda_.shape, "float32"))
        assign(self.gamma, np.full(self.gamma.shape, 1.0 / self.shape.smaller, "f4"))

    def owner(self) -> RandLoRALayer:
        """Return the layer that is adapted.

        Raises:
            RuntimeError: It is gone.
        """
        owner = self._owner()
        if owner is None:
            raise RuntimeError(f"The layer adapted by '{self.path}' is gone.")
        return owner

    def save_own_variables(self, saved: Any) -> None:
        """Save λ, γ and a sparse correction of the base kernel; see `layers.store`."""
        store.write_adapter(self.owner(), saved)

    def load_own_variables(self, saved: Any) -> None:
        """Load λ and γ, and subtract the update from the loaded kernel.

        Raises:
            ValueError: λ and γ were trained with other bases or another scale, which
                gives a different update in this layer.
        """
        store.read_adapter(self.owner(), saved)

    def _is_off(self) -> bool:
        """Whether the product omits the update; a graph may read λ = 0 instead."""
        return not self.active and not (self.zeroed and in_graph())

    def _factors(self) -> tuple[Array, Array]:
        return ops.convert_to_tensor(self.lambda_), ops.convert_to_tensor(self.gamma)

    def _factor(self, name: str, shape: tuple[int, ...], value: float) -> Any:
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            autocast=False,
        )
