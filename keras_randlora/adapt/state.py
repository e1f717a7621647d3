"""State of an adapted model, reconstructed from its layers.

`enable_randlora` keeps with the model what its layers do not record: the patterns it
was called with, and what was trainable before. Looking up the state changes nothing.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_randlora.adapt.recover import recover
from keras_randlora.adapt.sites import Site, sites
from keras_randlora.adapt.targets import Selection
from keras_randlora.adapt.trainable import (
    TrainableFlag,
    extra_variables,
    restore_flags,
    trainable_flags,
)
from keras_randlora.config import RandLoRAConfig
from keras_randlora.layers import RandLoRALayer, pass_gradients, restore_rounding
from keras_randlora.update import BasisBank

Bases = tuple[np.ndarray, np.ndarray]
MERGED = "merged"
HALF_MERGED = "half merged"
_MEMORY = "_randlora_state"


@dataclass
class AdaptedState:
    """How a model is adapted.

    Attributes:
        config: The options.
        selection: The adapted and the also trained layers.
        extra: The variables trained beside λ and γ, by address.
        was_trainable: What was trainable before.
        block: `MERGED` within `merged`, `HALF_MERGED` after an interrupted merge.
        hook: Removes the model's hook, on torch.
    """

    config: RandLoRAConfig
    selection: Selection
    extra: dict[str, keras.Variable]
    was_trainable: list[TrainableFlag]
    block: str | None = None
    hook: Any = None

    def banks(self) -> list[BasisBank]:
        """Return the banks of bases, usually one."""
        banks = (site.layer.bank for site in self.selection.adapted)
        return list({id(bank): bank for bank in banks}.values())

    def variables(self) -> dict[str, keras.Variable]:
        """Return λ and γ of every adapted layer and the extra ones, by address."""
        found = {}
        for site in self.selection.adapted:
            found[f"{site.address}/lambda"] = site.layer.randlora.lambda_
            found[f"{site.address}/gamma"] = site.layer.randlora.gamma
        return {**found, **self.extra}


def remember(model: keras.Model, state: AdaptedState) -> None:
    """Keep with a model what its layers do not record."""
    setattr(model, _MEMORY, state)
    for layer in state.selection.layers:
        if isinstance(layer, RandLoRALayer):  # not merged yet
            layer.randlora.enabled_on = weakref.ref(model)
    for site in sites(model):
        pass_gradients(site.layer)
    if keras.backend.backend() == "torch" and state.hook is None:
        state.hook = model.register_load_state_dict_post_hook(_after_load_state_dict)


def _after_load_state_dict(model: keras.Model, incompatible_keys: Any) -> None:
    """Refuse the bases of another seed in a torch state dict, and restore ours."""
    state: AdaptedState | None = getattr(model, _MEMORY, None)
    for bank in state.banks() if state and not state.block else ():
        try:
            bank.require_own_bases()
        except ValueError:
            bank.restore()
            raise


def forget(model: keras.Model, flags: list[TrainableFlag]) -> None:
    """Undo `remember` and `train_only`, in the models inside too."""
    restore_flags(flags)
    inside = [site.layer for site in sites(model)]
    for layer in inside:
        restore_rounding(layer)
    for layer in (model, *inside):
        memory: AdaptedState | None = vars(layer).get(_MEMORY)
        if memory is not None:
            if memory.hook is not None:
                memory.hook.remove()
            delattr(layer, _MEMORY)


@contextlib.contextmanager
def in_block(model: keras.Model, state: AdaptedState, block: str) -> Iterator[None]:
    """Mark the model as inside a block, where its layers do not show the adaptation."""
    known = _MEMORY in vars(model)
    state.block = block
    setattr(model, _MEMORY, state)
    try:
        yield
    finally:
        state.block = None
        if not known:
            delattr(model, _MEMORY)


def find_state(model: keras.Model) -> AdaptedState | None:
    """Return the state of an adapted model, `None` if it is plain.

    Raises:
        ValueError: `enable_randlora` was called on a model that holds this one, or the
            layers were built with different options.
        TypeError: It is not a Keras model.
    """
    _require_model(model)
    everything = sites(model)
    adapted = [s for s in everything if isinstance(s.layer, RandLoRALayer)]
    memory: AdaptedState | None = getattr(model, _MEMORY, None)
    if memory and (memory.block or _same_layers(memory.selection.adapted, adapted)):
        return memory
    if not adapted:
        return None
    _require_whole(model, everything, adapted)
    config, selection = recover(model, everything, adapted)
    flags = _former_flags(model, everything, adapted)
    extra = extra_variables(model, selection, config)
    return AdaptedState(config, selection, extra, flags)


def is_adapted(model: keras.Model) -> bool:
    """Return whether the model is adapted, by `enable_randlora` or when built."""
    return find_state(model) is not None


def adapted_state(model: keras.Model, *, half_merged: bool = False) -> AdaptedState:
    """Return the state of an adapted model.

    Args:
        model: An adapted model.
        half_merged: Whether a partly merged model is accepted.

    Raises:
        ValueError: The model is not adapted, inside `merged` or `base_only`, partly
            merged, adapted through another model, or built of layers with different
            options.
    """
    state = find_state(model)
    if state is None:
        raise ValueError(
            f"Model '{model.name}' is not adapted by RandLoRA. Call "
            "`enable_randlora(model, ...)` first."
        )
    if state.block == HALF_MERGED:
        if half_merged:
            return state
        raise ValueError(
            f"Model '{model.name}' is merged in part: `merge_randlora(model)` was "
            "interrupted. Call it again, which merges the rest."
        )
    block = state.block or _switched_off(state)
    if block:
        raise ValueError(
            f"Model '{model.name}' is inside a `{block}(model)` block. Leave the "
            "block first."
        )
    for bank in state.banks():
        bank.require_own_bases()
    return state


def require_plain(model: keras.Model) -> None:
    """Check that no layer of the model is adapted.

    Raises:
        ValueError: One is.
        TypeError: It is not a Keras model.
    """
    _require_model(model)
    adapted = [s.path for s in sites(model) if isinstance(s.layer, RandLoRALayer)]
    memory: AdaptedState | None = getattr(model, _MEMORY, None)
    if adapted or (memory is not None and memory.block):
        where = f" Layer '{adapted[0]}' is." if adapted else ""
        raise ValueError(
            f"Model '{model.name}' is already adapted by RandLoRA.{where} Call "
            "`disable_randlora(model)` or `merge_randlora(model)` first."
        )


def given_bases(model: keras.Model) -> Bases | None:
    """Return the bases that were passed in, `None` if they follow from the seed.

    Returns:
        `basis_a` of shape `(r, s)` and `basis_b` of shape `(l, n * r)`, float32.

    Raises:
        ValueError: The model is not adapted.
    """
    bank = adapted_state(model).selection.adapted[0].layer.bank
    return bank.draw() if bank.given else None


def _require_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            "RandLoRA adapts a `keras.Model`. Received: "
            f"{model!r} (of type {type(model).__name__})."
        )


def _same_layers(one: list[Site], other: list[Site]) -> bool:
    return {id(site.layer) for site in one} == {id(site.layer) for site in other}


def _switched_off(state: AdaptedState) -> str | None:
    adapters = (site.layer.randlora for site in state.selection.adapted)
    return None if all(adapter.active for adapter in adapters) else "base_only"


def _require_whole(
    model: keras.Model, everything: list[Site], adapted: list[Site]
) -> None:
    """Refuse a part of the model that `enable_randlora` was called on."""
    inside = {id(model), *(id(site.layer) for site in everything)}
    for site in adapted:
        other = site.layer.randlora.enabled_on() if site.layer.built else None
        if other is not None and id(other) not in inside:
            raise ValueError(
                f"'{site.path}' of model '{model.name}' is adapted, but "
                "`enable_randlora` was called on another model that holds it, "
                f"'{other.name}': pass that model."
            )


def _former_flags(
    model: keras.Model, everything: list[Site], adapted: list[Site]
) -> list[TrainableFlag]:
    """Return the `trainable` flags from before a model was adapted, if known.

    A model inside that `enable_randlora` was called on records them. Otherwise the
    flags stay, except that adapted layers become trainable, as plain layers are.
    """
    known: dict[int, TrainableFlag] = {}
    for site in everything:
        memory: AdaptedState | None = getattr(site.layer, _MEMORY, None)
        if memory is not None:
            known |= {id(flag.layer): flag for flag in memory.was_trainable}
    plain = {id(site.layer) for site in adapted}
    flags = []
    for flag in trainable_flags(model):
        if id(flag.layer) in plain:
            variables = [(variable, True) for variable, _ in flag.variables]
            flag = flag._replace(variables=variables)
        flags.append(known.get(id(flag.layer), flag))
    return flags
