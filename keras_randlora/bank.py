"""The owner of the frozen bases that all adapted layers of a model share."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_randlora import bases
from keras_randlora.bases import BasisSpec
from keras_randlora.config import BASIS_STORAGES
from keras_randlora.update import UpdateShape

Array = Any


@keras.saving.register_keras_serializable(package="keras_randlora")
class BasisBank(keras.layers.Layer):
    """One pair of frozen bases, sliced by every layer that shares it.

    The bases follow from the seed, so they are never written to a weights file.

    Args:
        rank: Rows `r` of `basis_a`.
        a_columns: Columns of `basis_a`: the largest smaller side.
        b_rows: Rows of `basis_b`: the largest larger side.
        b_columns: Columns of `basis_b`: the largest `n * r`.
        basis: Name of the distribution.
        sparsity: Resolved sparsity of ternary bases, else `None`.
        seed: Integer in `[0, 2**32)`.
        storage: `"stored"` keeps both as non-trainable weights, int8 if ternary;
            `"regenerated"` keeps none and draws them in each call.

    Raises:
        ValueError: `storage` is neither of them.
    """

    given = False

    def __init__(
        self,
        rank: int,
        a_columns: int,
        b_rows: int,
        b_columns: int,
        *,
        basis: str = "uniform",
        sparsity: float | None = None,
        seed: int = 0,
        storage: str = "stored",
        **kwargs: Any,
    ) -> None:
        if storage not in BASIS_STORAGES:
            raise ValueError(
                f"`storage` must be one of {list(BASIS_STORAGES)}. Received: "
                f"storage={storage!r}."
            )
        super().__init__(**kwargs)
        self.rank = rank
        self.a_columns = a_columns
        self.b_rows = b_rows
        self.b_columns = b_columns
        self.spec = BasisSpec(basis=basis, sparsity=sparsity, seed=seed)
        self.storage = storage
        self.basis_a = self.basis_b = None
        self.build()

    @classmethod
    def for_shapes(
        cls, shapes: Sequence[UpdateShape], spec: BasisSpec, **kwargs: Any
    ) -> BasisBank:
        """Return the smallest bank that serves all `shapes` (of one rank)."""
        return cls(
            shapes[0].rank,
            max(shape.smaller for shape in shapes),
            max(shape.larger for shape in shapes),
            max(shape.columns for shape in shapes),
            basis=spec.basis,
            sparsity=spec.sparsity,
            seed=spec.seed,
            **kwargs,
        )

    def build(self, input_shape: Any = None) -> None:
        """Create the stored pair; nothing for regenerated storage."""
        if self.storage == "stored":
            a, b = self.draw()
            self.basis_a = self._frozen("basis_a", a)
            self.basis_b = self._frozen("basis_b", b)
        self.built = True

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pair as NumPy arrays, `(r, a_columns)`, `(b_rows, b_columns)`."""
        return (
            bases.draw_a(self.spec, self.rank, self.a_columns),
            bases.draw_b(self.spec, self.b_rows, self.b_columns),
        )

    def serves(self, shape: UpdateShape) -> bool:
        """Return whether the pair is large enough for `shape`."""
        return (
            shape.rank == self.rank
            and shape.smaller <= self.a_columns
            and shape.larger <= self.b_rows
            and shape.columns <= self.b_columns
        )

    def require_serves(self, shape: UpdateShape, path: str) -> None:
        """Check that the pair is large enough for the layer `path`.

        Raises:
            ValueError: It is not.
        """
        if not self.serves(shape):
            raise ValueError(
                f"The bank of bases is too small for layer '{path}'. It serves rank "
                f"{self.rank}, sides up to {self.b_rows} and {self.a_columns}. "
                f"Received: {shape}."
            )

    def stored(self) -> tuple[Array, ...]:
        """Return the stored tensors, none for regenerated storage."""
        if self.basis_a is None:
            return ()
        return (
            ops.convert_to_tensor(self.basis_a),
            ops.convert_to_tensor(self.basis_b),
        )

    def read(
        self, stored: Sequence[Array], shape: UpdateShape, dtype: Any
    ) -> tuple[Array, Array]:
        """Return `basis_a` and `basis_b` for one layer, with unit variance.

        Args:
            stored: What `stored()` returned.
            shape: Sizes of the layer's update.
            dtype: Floating-point dtype of the result.

        Returns:
            `basis_a` of shape `(r, s)`, `basis_b` of shape `(l, n * r)`.
        """
        if stored:
            basis_a = stored[0][:, : shape.smaller]
            basis_b = stored[1][: shape.larger, : shape.columns]
        else:
            basis_a = bases.draw_a_ops(self.spec, self.rank, shape.smaller)
            basis_b = bases.draw_b_ops(self.spec, shape.larger, shape.columns)
            basis_a = ops.cast(basis_a, self._held_dtype)
            basis_b = ops.cast(basis_b, self._held_dtype)
        return self._unit_variance(basis_a, dtype), self._unit_variance(basis_b, dtype)

    def bases(self, shape: UpdateShape, dtype: Any) -> tuple[Array, Array]:
        """Return `basis_a` and `basis_b` for one layer; see `read`."""
        return self.read(self.stored(), shape, dtype)

    def save_own_variables(self, store: Any) -> None:
        """Write nothing: the bases follow from the seed."""

    def load_own_variables(self, store: Any) -> None:
        """Read nothing: the bases follow from the seed."""

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            **super().get_config(),
            "rank": self.rank,
            "a_columns": self.a_columns,
            "b_rows": self.b_rows,
            "b_columns": self.b_columns,
            "basis": self.spec.basis,
            "sparsity": self.spec.sparsity,
            "seed": self.spec.seed,
            "storage": self.storage,
        }

    @property
    def _held_dtype(self) -> str:
        """The dtype of stored bases, to which regenerated ones are rounded too."""
        ternary = bases.DISTRIBUTIONS[self.spec.basis].dtype == "int8"
        return "int8" if ternary else self.compute_dtype

    def _frozen(self, name: str, values: np.ndarray) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=values.shape,
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(values, dtype),
            dtype=self._held_dtype,
            trainable=False,
            autocast=False,
        )

    def _unit_variance(self, basis: Array, dtype: Any) -> Array:
        scale = bases.scale_of(self.spec)
        basis = ops.cast(basis, dtype)
        return basis if scale == 1.0 else basis * scale


@keras.saving.register_keras_serializable(package="keras_randlora")
class GivenBasisBank(BasisBank):
    """A pair of bases that came with a file and follows from no seed.

    It is written to weights files with the model, and read from them: a bank that
    is rebuilt from its configuration holds NaN until then.

    Args:
        rank: Rows `r` of `basis_a`.
        a_columns: Columns of `basis_a`.
        b_rows: Rows of `basis_b`.
        b_columns: Columns of `basis_b`.

    Attributes:
        given: Whether the pair came with a file.
    """

    given = True

    @classmethod
    def of_arrays(
        cls, basis_a: np.ndarray, basis_b: np.ndarray, **kwargs: Any
    ) -> GivenBasisBank:
        """Return the bank of `basis_a` `(r, s)` and `basis_b` `(l, n * r)`."""
        bank = cls(*basis_a.shape, *basis_b.shape, **kwargs)
        bank._assign(basis_a, basis_b)
        return bank

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pair as NumPy arrays, float32."""
        if self.basis_a is None:
            a = np.full((self.rank, self.a_columns), np.nan, "float32")
            return a, np.full((self.b_rows, self.b_columns), np.nan, "float32")
        a, b = (ops.cast(basis, "float32") for basis in self.stored())
        return np.array(ops.convert_to_numpy(a)), np.array(ops.convert_to_numpy(b))

    def save_own_variables(self, store: Any) -> None:
        """Write the pair."""
        store["basis_a"], store["basis_b"] = self.basis_a, self.basis_b

    def load_own_variables(self, store: Any) -> None:
        """Read the pair; a file without one, of a plain model, leaves it."""
        if "basis_a" in store:
            self._assign(store["basis_a"], store["basis_b"])

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        config = super().get_config()
        for name in ("basis", "sparsity", "seed", "storage"):
            del config[name]
        return config

    def _assign(self, basis_a: Array, basis_b: Array) -> None:
        for variable, basis in zip(self.weights, (basis_a, basis_b), strict=True):
            variable.assign(basis)


_REBUILT: weakref.WeakValueDictionary[str, BasisBank] = weakref.WeakValueDictionary()


def rebuilt_bank(config: dict[str, Any] | None) -> BasisBank | None:
    """Return the bank of a layer's configuration, the same for layers that shared one.

    Keras shares objects within one `load_model` only; `clone_model` and
    `model_from_json` rebuild layer by layer. Drawn bases never change, so that one
    bank can serve every rebuilt model as well.

    Args:
        config: What `keras.saving.serialize_keras_object` made of the bank, `None`
            for a layer that owns its bank.
    """
    if config is None or "seed" not in config["config"]:
        return keras.saving.deserialize_keras_object(config)
    key = json.dumps(config, sort_keys=True)
    bank = _REBUILT.get(key)
    if bank is None:
        bank = _REBUILT[key] = keras.saving.deserialize_keras_object(config)
    return bank
