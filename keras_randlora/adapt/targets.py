"""Selection of the layers to adapt or train, by patterns."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import keras

from keras_randlora.adapt.hub_repairs import backbone_of
from keras_randlora.adapt.hub_weights import is_router
from keras_randlora.adapt.sites import Site
from keras_randlora.adapt.weights import all_sites
from keras_randlora.config import RandLoRAConfig
from keras_randlora.layers import (
    HeldWeight,
    LinearWeight,
    RandLoRALayer,
    is_convolution,
    is_convolution_in_groups,
    is_of_patches,
    kernel_shape,
    kind_name,
    layout_of,
    require_supported_mode,
)
from keras_randlora.tools import keras_internals

_GLOB_CHARACTERS = frozenset("*?[")
DEFAULT_GROUP = "attention"


class Selection(NamedTuple):
    """The layers that a configuration selects, in the model's order."""

    adapted: list[Site]
    also_trained: list[Site]

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The layers to adapt, or the adapted layers."""
        return [site.layer for site in self.adapted]


def select(model: keras.Model, config: RandLoRAConfig) -> Selection:
    """Return the layers and weights that `config` adapts or fully trains.

    Nothing in the model changes.

    Raises:
        ValueError: A pattern matches nothing, names a layer of an unsupported
            kind, or a selected layer cannot be adapted.
    """
    everything = all_sites(model, dict(config.weight_axes))
    require_built(model, [site for site in everything if site.linear])
    adapted = _targeted(model, everything, config)
    excluded: set[int] = set()
    for pattern in config.exclude:
        excluded |= _ids(_matching(model, everything, pattern, "exclude"))
    adapted = [site for site in adapted if id(site.layer) not in excluded]
    if not adapted:
        raise ValueError(
            "No layer is left to adapt: `exclude` removes all that `targets` "
            f"selects. Received: targets={config.targets}, exclude={config.exclude}."
        )
    adapted = _in_blocks(adapted, config.layers)
    for site in adapted:
        _require_adaptable(site)
    _require_own_kernels(adapted)
    also_trained: list[Site] = []
    layers = [site for site in everything if not isinstance(site.layer, HeldWeight)]
    for pattern in config.also_train:
        also_trained += _matching(model, layers, pattern, "also_train")
    chosen = _ids(also_trained)
    overlap = [
        s.path for s in adapted if chosen & set(map(id, (s.layer, *s.ancestors)))
    ]
    if overlap:
        raise ValueError(
            f"Layer '{overlap[0]}' is in both `targets` and `also_train`. Its kernel "
            "cannot be both frozen under an update and trained; leave it out of one "
            "of them."
        )
    return Selection(adapted, [site for site in everything if id(site.layer) in chosen])


def select_addresses(
    model: keras.Model,
    adapted: Sequence[str],
    also_trained: Sequence[str],
    weight_axes: Mapping[str, str] | None = None,
) -> Selection:
    """Return the layers of exactly these addresses, each in the model's order.

    Raises:
        ValueError: An address is not in the model, or its layer cannot be adapted.
    """
    by_address = {site.address: site for site in all_sites(model, weight_axes or {})}
    for address in (*adapted, *also_trained):
        if address not in by_address:
            near = difflib.get_close_matches(address, by_address, n=1)
            hint = f" Nearest: '{near[0]}'." if near else ""
            raise ValueError(
                f"The model '{model.name}' has no layer '{address}'.{hint}"
            )
    for address in adapted:
        site = by_address[address]
        if not site.linear:
            raise ValueError(_unsupported_message(address, site))
        _require_adaptable(site)
    chosen = [site for address, site in by_address.items() if address in adapted]
    _require_own_kernels(chosen)
    return Selection(
        chosen,
        [site for address, site in by_address.items() if address in also_trained],
    )


def _targeted(
    model: keras.Model, everything: list[Site], config: RandLoRAConfig
) -> list[Site]:
    if config.targets is None:
        return _default_targets(model, everything)
    chosen: set[int] = set()
    for pattern in config.targets:
        matches = _matching(model, everything, pattern, "targets")
        linear = [site for site in matches if site.linear]
        if not linear:
            weights = [s for s in matches if isinstance(s.layer, HeldWeight)]
            raise ValueError(_unsupported_message(pattern, (weights or matches)[0]))
        chosen |= _ids(linear)
    return [site for site in everything if id(site.layer) in chosen]


def _default_targets(model: keras.Model, everything: list[Site]) -> list[Site]:
    names: list[str] = getattr(backbone_of(model), "default_lora_layer_names", list)()
    everything = _called(everything)
    chosen = [site for site in everything if site.linear and site.name in names]
    chosen = chosen or _GROUPS[DEFAULT_GROUP](model, everything)
    if not chosen:
        linear = [site.path for site in everything if site.linear]
        raise ValueError(
            f"Model '{model.name}' has no attention layers to adapt by default. "
            "Pass `targets`, for instance targets='all-linear'. Linear layers and "
            f"weights: {_shortened(linear)}."
        )
    return chosen


def _matching(
    model: keras.Model, everything: list[Site], pattern: str, option: str
) -> list[Site]:
    """Return the sites that a pattern matches; at least one, or raise."""
    group = _GROUPS.get(pattern)
    matches = group(model, _called(everything)) if group else []
    matches = matches or _matches(everything, pattern)
    if not matches:
        raise ValueError(_no_match_message(pattern, option, everything))
    return matches


def _called(everything: list[Site]) -> list[Site]:
    """Leave out linear layers without a kernel: the model never calls them."""
    return [site for site in everything if not site.linear or site.layer.built]


def _matches(everything: list[Site], pattern: str) -> list[Site]:
    """Return the sites of a name, path, address, glob or expression, in this order."""
    if pattern.startswith("re:"):
        whole = re.compile(pattern[3:]).fullmatch
        return [site for site in everything if whole(site.path)]
    exact = [site for site in everything if _is_called(site, pattern)]
    if exact:
        return exact
    if _GLOB_CHARACTERS & set(pattern):
        return [
            site
            for site in everything
            if fnmatch.fnmatchcase(site.path, pattern)
            or fnmatch.fnmatchcase(site.name, pattern)
        ]
    return [site for site in everything if site.address == pattern]


def _is_called(site: Site, name: str) -> bool:
    """Whether a layer has this name or path, or a path that ends in this one."""
    return name in (site.name, site.path, site.layer.path) or (
        "/" in name and site.path.endswith(f"/{name}")
    )


def _attention(model: keras.Model, everything: list[Site]) -> list[Site]:
    return [site for site in everything if _is_matrix(site) and site.in_attention]


def _mlp(model: keras.Model, everything: list[Site]) -> list[Site]:
    return [
        site
        for site in everything
        if _is_matrix(site) and not site.in_attention and site.block_index is not None
    ]


def _experts(model: keras.Model, everything: list[Site]) -> list[Site]:
    return [
        site
        for site in everything
        if isinstance(site.layer, LinearWeight) and layout_of(site.layer).batch
    ]


def _conv(model: keras.Model, everything: list[Site]) -> list[Site]:
    return [site for site in everything if is_convolution(site.layer)]


def _all_linear(model: keras.Model, everything: list[Site]) -> list[Site]:
    backbone = backbone_of(model)
    return [s for s in everything if _is_matrix(s) and backbone in s.ancestors]


_GROUPS: dict[str, Callable[[keras.Model, list[Site]], list[Site]]] = {
    "attention": _attention,
    "mlp": _mlp,
    "experts": _experts,
    "conv": _conv,
    "all-linear": _all_linear,
}


def _is_matrix(site: Site) -> bool:
    """Whether a layer is linear in its input, and not a router of experts."""
    if is_convolution(site.layer) and not is_of_patches(site.layer):
        return False
    return site.linear and not is_router(site.ancestors[-1], site.layer)


def _in_blocks(chosen: list[Site], layers: tuple[int, ...] | None) -> list[Site]:
    if layers is None:
        return chosen
    present = {index for site in chosen if (index := site.block_index) is not None}
    missing = sorted(set(layers) - present)
    if missing:
        raise ValueError(
            f"`layers` names block {missing[0]}, but the targets are in blocks "
            f"{sorted(present)}. Received: layers={list(layers)}."
        )
    return [site for site in chosen if site.block_index in layers]


def require_built(model: keras.Model, linear: list[Site]) -> None:
    """Check that a model and its linear layers have their kernels.

    Raises:
        ValueError: A kernel is missing.
    """
    waiting = [site for site in linear if not site.layer.built]
    if keras_internals.has_called_its_layers(model):
        waiting = []  # SAM 3 has a convolution that it never calls
    if waiting or not model.built:
        name = waiting[0].path if waiting else model.name
        raise ValueError(
            f"Model '{model.name}' is not built yet: '{name}' has no kernel. Call "
            "the model on one batch (or `model.build(input_shape)`) first."
        )


def _require_adaptable(site: Site) -> None:
    layer = site.layer
    if not layer.built:
        raise ValueError(
            f"Layer '{site.path}' has no kernel: the model never calls it. Leave it "
            "out of the targets."
        )
    require_supported_mode(layer, site.path)
    if getattr(layer, "lora_enabled", False):  # transposed convolutions have none
        raise ValueError(
            f"Layer '{site.path}' has Keras's LoRA enabled. Merge it first by saving "
            "and reloading the weights into a model without LoRA."
        )
    if getattr(layer, "kernel_constraint", None) is not None:
        raise ValueError(
            f"Layer '{site.path}' has a `kernel_constraint`, which an update of the "
            "kernel would not respect. Remove the constraint or the target."
        )
    if isinstance(site.ancestors[-1], keras.layers.SpectralNormalization):
        raise ValueError(
            f"Layer '{site.path}' is wrapped in a SpectralNormalization, which "
            "rewrites the kernel in every training step. RandLoRA keeps it frozen; "
            "remove the wrapper or the target."
        )
    try:
        layout_of(layer)
    except ValueError as error:
        raise ValueError(f"Layer '{site.path}' cannot be adapted. {error}") from error


def _require_own_kernels(adapted: list[Site]) -> None:
    """Refuse two layers with one kernel: merging would write both updates into it."""
    holders: dict[int, Site] = {}
    for site in adapted:
        kernel = keras_internals.kernel_variable(site.layer)
        first = holders.setdefault(id(kernel), site)
        if first is not site:
            raise ValueError(
                f"Layers '{first.path}' and '{site.path}' share one kernel (tied "
                "weights), which cannot hold the updates of both. Leave one of them "
                f"out: exclude=['{site.path}']."
            )


def _unsupported_message(pattern: str, site: Site) -> str:
    kind = kind_name(site.layer)
    inside = ""
    if isinstance(site.layer, RandLoRALayer):
        return (
            f"Layer '{site.path}' is adapted already ({kind}). Call "
            "`disable_randlora(model)` or `merge_randlora(model)` first."
        )
    if keras_internals.children(site.layer):
        inside = f" To adapt the layers inside it, use '{site.path}/*'."
    if isinstance(site.layer, HeldWeight):
        return (
            f"Target '{pattern}' matches '{site.path}', a weight of shape "
            f"{kernel_shape(site.layer)}. If it is used in a matmul, name its axes, "
            f"such as weight_axes={{'{pattern}': 'batch in out'}}."
        )
    if is_convolution_in_groups(site.layer):
        return (
            f"Target '{pattern}' matches '{site.path}', a grouped or depthwise "
            f"convolution of type {kind}: each group has a kernel of its own, so there "
            "is no matrix to adapt."
        )
    return (
        f"Target '{pattern}' matches '{site.path}', a layer of type {kind}. RandLoRA "
        "adapts keras.layers.Dense and EinsumDense, convolutions without groups, and "
        f"weights that layers use in matmuls.{inside}"
    )


def _no_match_message(pattern: str, option: str, everything: list[Site]) -> str:
    kind = "Layers" if option == "also_train" else "Linear layers and weights"
    candidates = [s for s in everything if s.linear or option == "also_train"]
    names = dict.fromkeys(site.name for site in candidates)
    paths = dict.fromkeys(site.path for site in candidates)
    nearest = difflib.get_close_matches(pattern, names | paths, n=3, cutoff=0.5)
    hint = f" Nearest: {nearest}." if nearest else ""
    return (
        f"`{option}` matches no layer of the model. Received: {pattern!r}.{hint} "
        f"{kind} are named {_shortened(list(names))}."
    )


def _shortened(names: list[str], limit: int = 12) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    more = f", … ({len(names)} in all)" if len(names) > limit else ""
    return f"[{shown}{more}]"


def _ids(chosen: list[Site]) -> set[int]:
    return {id(site.layer) for site in chosen}


def _is_model(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.Model)
