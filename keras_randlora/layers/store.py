"""Entries of an adapted layer in a weights file.

| group | entries |
|---|---|
| the layer's own | those of a plain layer; the kernel is the merged one |
| `randlora` | `lambda`, `gamma`, `options`, and a correction for the base kernel |

So the fine-tuned kernel can be read without this package. `merged - update` is the base
kernel up to rounding; the entries that differ are saved as `base_index` and
`base_value`. Loading restores the base bit for bit if the update is computed with the
same rounding, and on another backend up to the last bit of the update. The base is
saved whole (`base_kernel`, …) if that takes fewer bytes, or if it is quantized, which
no subtraction restores.

Keras loads one group after the other: the base is restored after both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_randlora.config import GIVEN
from keras_randlora.layers.quantized import held_arrays, hold
from keras_randlora.tools import assign, keras_internals, to_numpy

if TYPE_CHECKING:
    from keras_randlora.layers.adapted import RandLoRALayer

_ENTRIES = ("base_index", "base_value")


@dataclass
class Arrivals:
    """The groups loaded so far, until the base kernel is restored.

    Attributes:
        kernel: Whether the layer's own group is loaded: its kernel is the merged one.
        base: The entries of the group `randlora` that restore the base, `None` before
            that group is loaded.
    """

    kernel: bool = False
    base: Mapping[str, np.ndarray] | None = None


def write_adapter(layer: RandLoRALayer, saved: Any) -> None:
    """Save the group `randlora` of a layer.

    Args:
        layer: An adapted, built layer.
        saved: The group; takes arrays by name.
    """
    adapter = layer.randlora
    adapter.bank.require_own_bases()
    saved["options"] = np.frombuffer(json.dumps(_origin(layer)).encode(), "uint8")
    saved["lambda"] = to_numpy(adapter.lambda_)
    saved["gamma"] = to_numpy(adapter.gamma)
    for name, array in _base_entries(layer).items():
        saved[name] = array


def kernel_arrived(layer: RandLoRALayer) -> None:
    """Record that the layer holds the merged kernel of a file."""
    layer.randlora.arrivals.kernel = True
    _restore(layer)


def read_adapter(layer: RandLoRALayer, saved: Any) -> None:
    """Load the group `randlora` of a layer.

    An empty group is from a plain layer: its kernel becomes the base, and the update is
    reset to zero.

    Raises:
        ValueError: λ and γ were trained with other bases or another scale, which gives
            a different update in this layer.
    """
    adapter = layer.randlora
    if "lambda" not in saved:
        adapter.reset()
        adapter.arrivals = Arrivals()
        return
    _require_same_origin(layer, json.loads(np.asarray(saved["options"]).tobytes()))
    assign(adapter.lambda_, np.asarray(saved["lambda"]))
    assign(adapter.gamma, np.asarray(saved["gamma"]))
    names = [f"base{name}" for name in adapter.product.kernel.names]
    names = names if names[0] in saved else list(_ENTRIES)
    adapter.arrivals.base = {name: np.asarray(saved[name]) for name in names}
    _restore(layer)


def _restore(layer: RandLoRALayer) -> None:
    """Restore the base kernel once the merged one, λ and γ are loaded."""
    arrivals = layer.randlora.arrivals
    base = arrivals.base
    if not arrivals.kernel or base is None:
        return
    layer.randlora.arrivals = Arrivals()
    if _ENTRIES[0] not in base:
        hold(layer, {name.removeprefix("base"): array for name, array in base.items()})
        return
    variable = keras_internals.kernel_variable(layer)
    kernel = np.array(to_numpy(layer.unmerged_kernel(variable)))
    index, value = (base[name] for name in _ENTRIES)
    kernel.reshape(-1)[index] = value.astype(kernel.dtype)
    assign(variable, kernel)


def _base_entries(layer: RandLoRALayer) -> dict[str, np.ndarray]:
    """Return the arrays that restore the base from the merged kernel and the update."""
    if layer.quantization_mode is None:
        base = to_numpy(keras_internals.kernel_variable(layer))
        recovered = to_numpy(layer.unmerged_kernel(layer.merged_kernel()))
        index = np.flatnonzero(base != recovered).astype("int64")
        value = _storable(base.reshape(-1)[index])
        if index.nbytes + value.nbytes < _storable(base[:0]).itemsize * base.size:
            return dict(zip(_ENTRIES, (index, value), strict=True))
    held = held_arrays(layer)
    return {f"base{name}": _storable(array) for name, array in held.items()}


def _origin(layer: RandLoRALayer) -> dict[str, Any]:
    """Return the options that must be equal for λ and γ to give the same update."""
    adapter = layer.randlora
    spec, given = adapter.bank.spec, adapter.bank.given
    drawn = {"sparsity": spec.sparsity, "seed": spec.seed}
    batch = {"shared_in_batch": adapter.shape.shared}
    return {
        "rank": adapter.shape.rank,
        "num_bases": adapter.shape.num_bases,
        "alpha": adapter.options.alpha,
        "basis": GIVEN if given else spec.basis,
        **({} if given else drawn),
        **({} if adapter.shape.batch is None else batch),
    }


def _require_same_origin(layer: RandLoRALayer, theirs: dict[str, Any]) -> None:
    """Refuse λ and γ that would give a different update."""
    ours = _origin(layer)
    others = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
    if not others:
        return
    trained, has = (
        ", ".join(f"{name}={options.get(name)!r}" for name in others)
        for options in (theirs, ours)
    )
    raise ValueError(
        f"The weights of layer '{layer.path}' were trained with {trained}; the "
        f"layer has {has}, which gives a different update. Enable RandLoRA on a new "
        "model with the options of the file (with basis='given' use `load_adapter` or "
        "`keras_randlora.peft.load`) and load the file there. This model is now partly "
        "loaded: discard it."
    )


def _storable(array: np.ndarray) -> np.ndarray:
    """Return an array that h5py can write: bfloat16 becomes float32."""
    return array.astype("float32") if array.dtype.name == "bfloat16" else array
