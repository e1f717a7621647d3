"""LoRA of whole kernels, DoRA and NoLA: small layers to compare RandLoRA with.

A kernel `W` is read as the matrix `(in, out)` of its layer's product, also if Keras
stores it with three axes. There Keras's own LoRA factors the last axis only, which for
MiniLM's query, key and value trains six times as many parameters as LoRA.

| name | kernel that the layer computes with |
|---|---|
| `matrixlora-R` | `W + A B`, A `(in, R)`, B `(R, out)` (Hu et al., 2021) |
| `dora-R` | `m · V / |V|` with `V = W + A B`, m `(out,)` (Liu et al., 2024) |
| `nola-R` | `W + A B` of sums of frozen matrices (Koohpayegani et al., 2023) |

NoLA: `A = Σ α_i A_i / √k` and `B = Σ β_i B_i / √k`; the 2k coefficients α and β are
trained. Layers of equal sizes share the random matrices. In all three B starts at zero,
and so does the update. The layers are for comparisons in one process and are not saved.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_randlora.adapt import Selection
from keras_randlora.layers import layout_of

NOLA_MATRICES = 256  # k; 2k = 512 parameters per kernel, as VeRA of rank 128
Array = Any


class ReferenceLayer(keras.layers.Layer):
    """Base class of the three: a mixin before the class of the plain layer."""

    plain_class: type[keras.layers.Layer]

    def attach(self, **options: Any) -> None:
        """Give a built layer, plain so far, its variables and freeze its kernel."""
        self._tracker.unlock()
        self.layout = layout_of(self)
        self._kernel.trainable = False
        self.add_variables(**options)
        self._tracker.lock()

    def add_variables(self, **options: Any) -> None:
        """Create the trainable variables."""
        raise NotImplementedError

    def adapted(self, matrix: Array) -> Array:
        """Return the adapted matrix `(in, out)`."""
        raise NotImplementedError

    @property
    def kernel(self) -> Array:
        """The kernel of Keras's `call`."""
        matrix = self.layout.to_matrix(ops.convert_to_tensor(self._kernel))
        return self.layout.to_kernel(self.adapted(matrix))

    def add_variable(self, name: str, value: Array, trainable: bool = True) -> Any:
        """Return a new float32 variable of this value."""
        variable = self.add_weight(
            name=name,
            shape=np.shape(value),
            initializer="zeros",
            dtype="float32",
            autocast=False,
            trainable=trainable,
        )
        variable.assign(np.asarray(value, "float32"))
        return variable


class MatrixLoRA(ReferenceLayer):
    """`W + A B`."""

    def add_variables(self, rank: int, rng: np.random.Generator) -> None:
        """Create A, as Keras does it (He), and B of zeros."""
        rows, columns = self.layout.inputs, self.layout.outputs
        self.lora_a = self.add_variable("lora_a", he_uniform(rng, rows, (rows, rank)))
        self.lora_b = self.add_variable("lora_b", np.zeros((rank, columns)))

    def adapted(self, matrix: Array) -> Array:
        """Return `W + A B`."""
        return matrix + ops.matmul(self.lora_a, self.lora_b)


class DoRA(MatrixLoRA):
    """`m · (W + A B) / |W + A B|` with the norm of each output's column.

    The norm is constant in the gradient (section 4.3 of the paper).
    """

    def add_variables(self, rank: int, rng: np.random.Generator) -> None:
        """Create A, B and m, which begins as the norms of W."""
        super().add_variables(rank, rng)
        matrix = self.layout.to_matrix(ops.convert_to_tensor(self._kernel))
        norms = np.linalg.norm(ops.convert_to_numpy(matrix), axis=0)
        self.magnitude = self.add_variable("magnitude", norms)

    def adapted(self, matrix: Array) -> Array:
        """Return `m · V / |V|`."""
        direction = super().adapted(matrix)
        norms = ops.sqrt(ops.sum(ops.square(direction), axis=0))
        return direction * (self.magnitude / ops.stop_gradient(norms))


class NoLA(ReferenceLayer):
    """`W + A B` with trained combinations of frozen random matrices."""

    def add_variables(self, bases: Callable[[str, int], keras.Variable]) -> None:
        """Create α of ones and β of zeros.

        Args:
            bases: Returns the frozen `(k, in, R)` for `("inputs", in)`, `(k, R, out)`
                for `("outputs", out)`, which layers of the same sizes share.
        """
        self.bases_a = bases("inputs", self.layout.inputs)
        self.bases_b = bases("outputs", self.layout.outputs)
        count = self.bases_a.shape[0]
        self.alpha = self.add_variable("alpha", np.ones(count))
        self.beta = self.add_variable("beta", np.zeros(count))

    def adapted(self, matrix: Array) -> Array:
        """Return `W + A B`."""
        scale = 1.0 / math.sqrt(self.bases_a.shape[0])
        a = scale * ops.tensordot(self.alpha, self.bases_a, axes=1)
        b = scale * ops.tensordot(self.beta, self.bases_b, axes=1)
        return matrix + ops.matmul(a, b)


def matrix_lora(selection: Selection, rank: int, seed: int) -> None:
    """Put LoRA on the selected layers."""
    _put_factors(MatrixLoRA, selection, rank, seed)


def dora(selection: Selection, rank: int, seed: int) -> None:
    """Put DoRA on the selected layers."""
    _put_factors(DoRA, selection, rank, seed)


def nola(selection: Selection, rank: int, seed: int) -> None:
    """Put NoLA with `NOLA_MATRICES` matrices of a rank on the selected layers."""

    @functools.cache
    def bases(side: str, size: int) -> keras.Variable:
        rng = np.random.default_rng([seed, side == "outputs", size])
        if side == "inputs":
            value = he_uniform(rng, size, (NOLA_MATRICES, size, rank))
        else:
            bound = math.sqrt(3.0)  # of a uniform distribution with variance 1
            value = rng.uniform(-bound, bound, (NOLA_MATRICES, rank, size))
        with keras.name_scope("nola"):
            return keras.Variable(
                value.astype("float32"), trainable=False, name=f"{side}_{size}"
            )

    for site in selection.adapted:
        _swap(site.layer, NoLA)
        site.layer.attach(bases=bases)


ADAPTERS = {"matrixlora": matrix_lora, "dora": dora, "nola": nola}


def he_uniform(
    rng: np.random.Generator, inputs: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Return uniform entries with variance `2 / inputs`."""
    bound = math.sqrt(6.0 / inputs)
    return rng.uniform(-bound, bound, shape)


def _put_factors(kind: type, selection: Selection, rank: int, seed: int) -> None:
    for index, site in enumerate(selection.adapted):
        _swap(site.layer, kind)
        site.layer.attach(rank=rank, rng=np.random.default_rng([seed, index]))


def _swap(layer: keras.layers.Layer, kind: type) -> None:
    """Make a plain layer one of a kind of reference layers, in place."""
    layer.__class__ = _adapted_class(kind, type(layer))


@functools.cache
def _adapted_class(kind: type, plain: type) -> type:
    return type(
        f"{kind.__name__}{plain.__name__}", (kind, plain), {"plain_class": plain}
    )
