"""Where λ, γ and the bases lie when a model is spread over several devices."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import keras

from keras_randlora.adapt.sites import Site
from keras_randlora.layers import layout_of
from keras_randlora.tools import keras_internals

NAME = "randlora"
_OWN_PATH = re.compile(r"(.*/)?randlora(_bank)?/.*")


class AdapterLayoutMap(keras.distribution.LayoutMap):
    """A layout map whose patterns for the base model leave λ, γ and the bases alone.

    Only a pattern that contains `randlora` applies to them, the first that matches.
    """

    def __getitem__(self, key: str) -> Any:
        """Return the layout of a variable or layer path, `None` where there is none."""
        if not _OWN_PATH.fullmatch(key) or key in set(self):
            return super().__getitem__(key)
        for pattern in self:
            if NAME in pattern and re.fullmatch(pattern, key):
                return super().__getitem__(pattern)
        return None


def layout_map(
    base_map: keras.distribution.LayoutMap, *, shard_over: str | None = None
) -> keras.distribution.LayoutMap:
    """Extend the layout map of a base model to its adapters and bases.

    λ, γ and the bases are replicated on every device, even where a broad pattern of
    the base, such as `".*query.*"`, would match them. Entries of `base_map` whose
    pattern contains `randlora` are kept and come first. λ and γ of a bank of experts
    are divided as the bank is among its experts.

    Args:
        base_map: The base model's layout map, on a mesh of devices.
        shard_over: An axis of the mesh over which what grows with the model is divided
            instead: the columns of γ `(n, s)`, with its optimizer state, and the rows
            of a dense `basis_b` `(l, n * r)`. Both must be multiples of the axis's
            size.

    Returns:
        A new map for `keras.distribution.ModelParallel`.

    Raises:
        TypeError: `base_map` is no layout map.
        ValueError: The mesh has no such axis.

    Example:
    ```python
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    base_map = keras_hub.models.LlamaBackbone.get_layout_map(mesh)
    distribution = keras.distribution.ModelParallel(
        layout_map=kr.layout_map(base_map, shard_over="model"), batch_dim_name="batch"
    )
    keras.distribution.set_distribution(distribution)
    model = keras_hub.models.CausalLM.from_preset("llama3_8b_en")
    model.enable_randlora(rank=32)
    ```
    """
    if not isinstance(base_map, keras.distribution.LayoutMap):
        raise TypeError(
            "`base_map` must be a `keras.distribution.LayoutMap`. Received: "
            f"{base_map!r} (of type {type(base_map).__name__})."
        )
    axes = base_map.device_mesh.axis_names
    if shard_over is not None and shard_over not in axes:
        raise ValueError(
            f"`shard_over` must be an axis of the device mesh, one of {list(axes)}. "
            f"Received: shard_over={shard_over!r}."
        )
    extended = AdapterLayoutMap(base_map.device_mesh)
    for pattern in base_map:
        extended[pattern] = base_map[pattern]
    own = {
        r"(.*/)?randlora/lambda": (None, None),
        r"(.*/)?randlora/gamma": (None, shard_over),
        r"(.*/)?randlora_bank/basis_b": (shard_over, None),
        r"(.*/)?randlora_bank/basis_(a|left|right)": (None, None),
    }
    for pattern, layout in own.items():
        if pattern not in set(base_map):
            extended[pattern] = layout
    return extended


def require_same_distribution(
    model: keras.Model,
    adapted: Sequence[Site],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Check that λ and γ would lie on the devices that the model lies on.

    Args:
        model: The model.
        adapted: Its layers that are to be adapted.
        shapes: Shapes of what will be trained, under `<address>/lambda` and
            `<address>/gamma`.

    Raises:
        ValueError: The model was built under another distribution than the current
            one, or the current one's layout does not fit λ or γ.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        _require_strategy(model)
    elif backend == "jax" and keras.distribution.distribution() is None:
        _require_no_layout(model, adapted)
    elif backend == "jax":
        for site in adapted:
            for name in ("lambda", "gamma"):
                path = f"{site.layer.path}/{NAME}/{name}"
                shape = shapes[f"{site.address}/{name}"]
                if len(shape) == 3:
                    _follow_batch(site, path, shape)
                _require_layout_fits(path, shape)


def _follow_batch(site: Site, path: str, shape: tuple[int, ...]) -> None:
    """Divide λ or γ of a batch of kernels as the kernels are divided.

    Its map then has an entry for the very path; another map than ours stays as it is.
    """
    distribution = keras.distribution.distribution()
    layout_map = keras_internals.layout_map_of(distribution)
    if not isinstance(layout_map, AdapterLayoutMap):
        return
    kernel = keras_internals.kernel_variable(site.layer)
    laid_out = distribution.get_variable_layout(kernel)
    layout = layout_of(site.layer)
    (place,) = layout.batch_axes if len(layout.batch_axes) == 1 else (None,)
    axis = _axes(laid_out)[place] if laid_out and place is not None else None
    axis = axis if shape[0] == layout.batch else None  # else all experts share it
    if path in set(layout_map):
        del layout_map[path]
    general = layout_map[path]
    last = general.axes[-1] if general else None
    layout_map[path] = (axis, None, None if last == axis else last)


def _axes(layout: Any) -> Sequence[str | None]:
    """Return the mesh axis of each axis of a variable; before Keras 3.15 JAX has it."""
    if isinstance(layout, keras.distribution.TensorLayout):
        return layout.axes
    return layout.spec


def _require_no_layout(model: keras.Model, adapted: Sequence[Site]) -> None:
    for site in adapted:
        if keras_internals.has_layout(keras_internals.kernel_variable(site.layer)):
            raise ValueError(
                f"Model '{model.name}' was built under a `keras.distribution`, which "
                f"lays out the kernel of '{site.path}', but none is set now. Enable or "
                "load the adapter within `with distribution.scope():`, or call "
                "`keras.distribution.set_distribution(distribution)` first."
            )


def _require_layout_fits(path: str, shape: tuple[int, ...]) -> None:
    variable = SimpleNamespace(path=path, shape=shape)
    layout = keras.distribution.distribution().get_variable_layout(variable)
    mesh = layout.device_mesh
    counts = dict(zip(mesh.axis_names, mesh.shape, strict=True))
    parts = [counts.get(axis, 1) for axis in layout.axes]
    if len(parts) > len(shape) or any(
        size % part for size, part in zip(shape, parts, strict=False)
    ):
        raise ValueError(
            f"The distribution divides '{path}' of shape {shape} over the axes "
            f"{tuple(layout.axes)} of a mesh with {counts}, which is not possible. "
            "Pass its layout map through `keras_randlora.layout_map`, which by default "
            "replicates λ and γ."
        )


def _require_strategy(model: keras.Model) -> None:
    import tensorflow as tf

    current = tf.distribute.get_strategy() if tf.distribute.has_strategy() else None
    built_under = keras_internals.strategy_of(model)
    if built_under is not current:
        raise ValueError(
            f"Model '{model.name}' was built under {_named(built_under)}, but the "
            f"current strategy is {_named(current)}. Build the model and enable or "
            "load the adapter within the same `with strategy.scope():`."
        )


def _named(strategy: Any) -> str:
    return "no strategy" if strategy is None else type(strategy).__name__
