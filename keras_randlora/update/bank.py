"""Shared frozen bases of a model."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_randlora.bases import (
    BasisSpec,
    Operator,
    PairSize,
    basis_names,
    scale_of,
    sparse_operations,
)
from keras_randlora.config import BASIS_STORAGES, GIVEN, LayerOptions
from keras_randlora.tools import (
    assign,
    corners,
    is_traced,
    one_of,
    to_numpy,
)
from keras_randlora.update.formula import UpdateShape, pair_size
from keras_randlora.update.reader import Analysed, BasisReader

Array = Any
_SAMPLE = 32  # rows and columns of the sample that identifies a basis


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

    Example:
    >>> bank = kr.BasisBank(rank=2, a_columns=4, b_rows=6, b_columns=4)
    >>> basis_a, basis_b = bank.draw()
    >>> basis_a.shape, basis_b.shape
    ((2, 4), (6, 4))
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
        one_of("storage", storage, BASIS_STORAGES)
        super().__init__(**kwargs)
        self.rank = rank
        self.a_columns = a_columns
        self.b_rows = b_rows
        self.b_columns = b_columns
        self.spec = BasisSpec(basis=basis, sparsity=sparsity, seed=seed)
        self.storage = storage
        self._analysed = Analysed()
        self.build()

    @classmethod
    def for_shapes(
        cls, shapes: Sequence[UpdateShape], spec: BasisSpec, **kwargs: Any
    ) -> BasisBank:
        """Return the smallest bank that serves all `shapes` (of one rank)."""
        return cls(
            *pair_size(shapes),
            basis=spec.basis,
            sparsity=spec.sparsity,
            seed=spec.seed,
            **kwargs,
        )

    def build(self, input_shape: Any = None) -> None:
        """Create the stored bases; nothing for regenerated storage."""
        held = self.draw_stored() if self.storage == "stored" else {}
        for name, values in held.items():
            setattr(self, name, self._frozen(name, values))
        self._names = tuple(held)
        self._samples = tuple(values[:_SAMPLE, :_SAMPLE] for values in held.values())
        self.built = True
        if not self.given:
            self._guard()

    @property
    def size(self) -> PairSize:
        """The sizes of the pair."""
        return PairSize(self.rank, self.a_columns, self.b_rows, self.b_columns)

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pair as NumPy arrays, `(r, a_columns)`, `(b_rows, b_columns)`."""
        basis_a, *of_b = self.draw_stored().values()
        return basis_a, self.spec.kind.whole_b(of_b, self.size)

    def draw_stored(self) -> dict[str, np.ndarray]:
        """Return what stored bases hold: the pair, or A and the factors of B."""
        return self.spec.kind.draw(self.spec, self.size)

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
        return tuple(ops.convert_to_tensor(getattr(self, name)) for name in self._names)

    def read(
        self,
        stored: Sequence[Array],
        shape: UpdateShape,
        dtype: Any,
        after: Array | None = None,
    ) -> tuple[Array, Operator]:
        """Return `basis_a` and `basis_b` for one layer, as drawn.

        Args:
            stored: What `stored()` returned.
            shape: Sizes of the layer's update.
            dtype: Floating-point dtype of the result.
            after: A tensor that a compiler must wait for before it draws or converts
                bases, so that they do not stay alive between their uses.

        Returns:
            `basis_a` of shape `(r, s)`, and `basis_b` `(l, n * r)` as an operator. The
            product of both must be multiplied by `pair_scale`.
        """
        return self.reader.read(stored, shape, dtype, after)

    @property
    def reader(self) -> BasisReader:
        """Reader of a layer's bases, which holds none of them."""
        return BasisReader(self.rank, self.spec, self._held_dtype, self._analysed)

    @property
    def pair_scale(self) -> float:
        """The factor that gives the product of A and B their unit variance."""
        return scale_of(self.spec) ** 2

    def bases(self, shape: UpdateShape, dtype: Any) -> tuple[Array, Array]:
        """Return `basis_a` and `basis_b` for one layer, with unit variance.

        Args:
            shape: Sizes of the layer's update.
            dtype: Floating-point dtype of the result.

        Returns:
            Matrices of shape `(r, s)` and `(l, n * r)`.
        """
        basis_a, basis_b = self.read(self.stored(), shape, dtype)
        scale = scale_of(self.spec)
        return basis_a * scale, basis_b.dense() * scale

    def operations(self, shape: UpdateShape) -> int:
        """Count the operations of a product of a layer's B with one column."""
        sides = shape.larger, shape.columns
        if self.reader.is_sparse(self.stored()):
            return sparse_operations(*sides, self.spec)
        return self.spec.kind.operations(*sides)

    def require_own_bases(self) -> None:
        """Check that stored bases are those of the seed.

        Raises:
            ValueError: Others were written into the variables, past this package.
        """
        for name, sample in zip(self._names, self._samples, strict=True):
            if not self.given:
                self._require_own(name, sample, getattr(self, name).value)

    def restore(self) -> None:
        """Restore the drawn bases, whatever was written into the variables."""
        for name, values in self.draw_stored().items():
            assign(getattr(self, name), values)

    def _guard(self) -> None:
        """Let weight lists and state trees assign no bases of another seed."""
        for name, sample in zip(self._names, self._samples, strict=True):
            variable = getattr(self, name)
            variable.assign = _Checked(self, name, sample, variable.assign)

    def _require_own(self, name: str, sample: np.ndarray, values: Array) -> None:
        shape = tuple(getattr(self, name).shape)
        if is_traced() or tuple(values.shape) != shape:
            return  # no values yet, or refused by the variable
        own = to_numpy(ops.cast(ops.cast(sample, self._held_dtype), "float32"))
        if any(
            not np.array_equal(found, own[place])
            for place, found in corners(values, sample.shape)
        ):
            raise ValueError(
                f"`{name}` of '{self.name}' follows from seed={self.spec.seed} and "
                f"basis={self.spec.basis!r}; these are the values of other bases. λ "
                "and γ that were trained with them mean another update here. Enable "
                "RandLoRA with the seed and basis of their model, or copy with "
                "`get_adapter` and `set_adapter`."
            )

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
        dtype = self.spec.kind.distribution.dtype
        return dtype if dtype == "int8" else self.compute_dtype

    def _frozen(self, name: str, values: np.ndarray) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=values.shape,
            initializer=_Values(values),
            dtype=self._held_dtype,
            trainable=False,
            autocast=False,
        )


@keras.saving.register_keras_serializable(package="keras_randlora")
class GivenBasisBank(BasisBank):
    """A pair of bases that came with a file and does not follow from a seed.

    It is written to weights files with the model, and read from them: a bank that
    is rebuilt from its configuration holds infinity until then.

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
        a, b = (to_numpy(ops.cast(basis, "float32")) for basis in self.stored())
        return np.array(a), np.array(b)

    def draw_stored(self) -> dict[str, np.ndarray]:
        """Return infinity, the values until the pair is loaded.

        JAX takes NaN for another value in each process.
        """
        shapes = self.spec.kind.shapes(self.size)
        return {n: np.full(shape, np.inf, "float32") for n, shape in shapes.items()}

    def rounded(self, basis: np.ndarray) -> np.ndarray:
        """Return a basis as the bank would hold it, float32."""
        held = ops.cast(ops.cast(basis, self._held_dtype), "float32")
        return np.array(to_numpy(held))

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
            assign(variable, basis)


def bank_for(
    shapes: Sequence[UpdateShape], options: LayerOptions, dtype: Any = None
) -> BasisBank:
    """Return the smallest bank that serves layers of these sizes (of one rank).

    Raises:
        ValueError: The bases follow from no seed.
    """
    if options.basis == GIVEN:
        raise ValueError(
            "basis='given' is for bases that come with a file, which "
            "`load_adapter` and `keras_randlora.peft.load` read. Choose one of "
            f"{basis_names()}. Received: basis='given' without bases."
        )
    return BasisBank.for_shapes(
        shapes,
        options.basis_spec(pair_size(shapes)),
        storage=options.basis_storage,
        name="randlora_bank",
        dtype=dtype,
    )


class _Checked:
    """`assign` of a variable of a bank, which first looks at the values."""

    def __init__(
        self, bank: BasisBank, name: str, sample: np.ndarray, assign: Any
    ) -> None:
        self.bank = weakref.ref(bank)
        self.name, self.sample, self.assign = name, sample, assign

    def __call__(self, value: Any) -> Any:
        bank = self.bank()
        if bank is not None:
            values = ops.convert_to_tensor(value)
            bank._require_own(self.name, self.sample, values)
        return self.assign(value)


class _Values(keras.initializers.Initializer):
    """Gives the values it holds.

    An object: Keras compiles the initializer of a large distributed variable by its
    `__call__`, and JAX refuses a function's.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Array:
        return ops.convert_to_tensor(self.values, dtype)


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
