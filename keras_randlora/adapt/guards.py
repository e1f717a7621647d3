"""Guards of `keras.Model`: before it trains, generates, is quantized or restored.

Most are installed once, on `keras.Model`, when the package is imported, and apply to
every model that holds an adapted layer, however it got it; those of keras-hub's tasks
on the classes of an adapted model. Plain models do not change.
"""

from __future__ import annotations

import contextlib
import functools
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from keras_randlora.adapt.compiled import note_compiled, shared_averages
from keras_randlora.adapt.diagnostics import warn_of_large_steps, warn_of_unsaved
from keras_randlora.adapt.state import find_state
from keras_randlora.adapt.state_trees import (
    layouts_for_any_number,
    prepare_optimizer,
    restore_tree,
)
from keras_randlora.layers import (
    RandLoRALayer,
    is_factor,
    kernels_formed,
    pass_gradients,
)
from keras_randlora.tools import hosts_of, keras_internals

_ACTIONS: weakref.WeakKeyDictionary[keras.Model, Callable[[keras.Model], None]]
_ACTIONS = weakref.WeakKeyDictionary()
_WRITERS = ("save", "save_weights")
_MAKERS = ("make_train_function", "make_test_function", "make_predict_function")


def install_guards() -> None:
    """Make `keras.Model` call the guards of this module."""
    for name in _MAKERS:
        _guard(keras.Model, name, functools.partial(_guarded_maker, name))
    for name in _WRITERS:
        _guard(keras.Model, name, functools.partial(_guarded_writer, name))
    _guard(keras.Model, "set_state_tree", _guarded_set_state_tree)
    _guard(keras.Model, "load_weights", _guarded_load_weights)
    keras_internals.check_before_quantizing(_refuse_to_quantize)
    keras_internals.spare_from_muon(is_factor)


def guard_tasks(model: keras.Model) -> None:
    """Guard methods of the model's classes, and of the classes of models within.

    keras-hub's `enable_lora` refuses an adapted model before it freezes it, and its
    `generate_step` forms the adapted kernels once, not for each token.
    """
    guards = {"enable_lora": _guarded_enable_lora, "generate_step": _forming}
    layers = keras_internals.layers_below(model)
    kinds = {type(layer) for layer in layers if isinstance(layer, keras.Model)}
    for owner in {owner for kind in kinds for owner in kind.__mro__}:
        for name in guards.keys() & vars(owner).keys():
            _guard(owner, name, guards[name])


def _guard(
    owner: type, name: str, guarded: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Replace a method by its guarded version, once."""
    method = getattr(owner, name)
    if not hasattr(method, "guarded"):
        replaced: Any = functools.wraps(method)(guarded(method))
        replaced.guarded = True
        setattr(owner, name, replaced)


def before_training(model: keras.Model, action: Callable[[keras.Model], None]) -> None:
    """Run `action(model)` once, when `fit` or `train_on_batch` begins next.

    Before its first step Keras runs a newly compiled model once more, which draws
    random numbers on torch.
    """
    _ACTIONS[model] = action


def _guarded_enable_lora(method: Callable[..., Any]) -> Callable[..., Any]:
    def enable_lora(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        if adapted := _adapted_layers(self):
            adapted[0].enable_lora()  # which refuses
        return method(self, *args, **kwargs)

    return enable_lora


def _forming(method: Callable[..., Any]) -> Callable[..., Any]:
    def generate_step(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        with kernels_formed(_adapted_layers(self)):
            return method(self, *args, **kwargs)

    return generate_step


def _guarded_set_state_tree(method: Callable[..., None]) -> Callable[..., None]:
    """Return the guarded `set_state_tree`, which also loads Orbax folders."""

    def set_state_tree(self: keras.Model, state_tree: Mapping[str, Any]) -> None:
        restore_tree(self, _adapted_layers(self), state_tree, method)

    return set_state_tree


def _guarded_load_weights(method: Callable[..., None]) -> Callable[..., None]:
    """Return `load_weights`, which asks where variables lie before it reads Orbax.

    Keras tells Orbax so under a distribution only; else it wants the devices that the
    folder was written from.
    """

    def load_weights(
        self: keras.Model, filepath: Any, *rest: Any, **options: Any
    ) -> None:
        if keras.backend.backend() != "jax" or not _adapted_layers(self):
            method(self, filepath, *rest, **options)
            return
        with contextlib.ExitStack() as undo:
            if os.path.isdir(filepath):
                prepare_optimizer(self)
                undo.enter_context(layouts_for_any_number(self))
                if keras.distribution.distribution() is None:
                    anyhow = keras.distribution.DataParallel(auto_shard_dataset=False)
                    undo.enter_context(anyhow.scope())
            method(self, filepath, *rest, **options)

    return load_weights


def _guarded_writer(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that writes a model's weights, where one process has them."""

    def write(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        if _adapted_layers(self):
            hosts = hosts_of(self.variables, divided=True)
            if not hosts.alone:
                raise ValueError(
                    f"`{name}` of model '{self.name}' would read in one process what "
                    f"is divided over {len(hosts.processes)}. Save the adapter with "
                    "`save_adapter` and `save_optimizer`, the whole state with "
                    "`keras.callbacks.OrbaxCheckpoint`, or the merged model with "
                    "`export_merged`."
                )
        return method(self, *args, **kwargs)

    return write


def _guarded_maker(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that checks a model before it compiles a function."""
    function_name = name.removeprefix("make_")

    def make(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, function_name, None) is None:
            note_compiled(self)
            if name == _MAKERS[0]:
                _before_training(self)
        if name == _MAKERS[0]:
            _separate_averages(self)
        return method(self, *args, **kwargs)

    return make


def _adapted_layers(model: keras.Model) -> list[RandLoRALayer]:
    layers = keras_internals.layers_below(model)
    return [layer for layer in layers if isinstance(layer, RandLoRALayer)]


def _before_training(model: keras.Model) -> None:
    """Give sanity warnings, and add the straight-through estimator."""
    if (action := _ACTIONS.pop(model, None)) is not None:
        action(model)
    adapted = _adapted_layers(model)
    if not adapted:
        return
    warn_of_large_steps(model, adapted[0].options)
    layers = keras_internals.layers_below(model)
    for layer in layers:
        pass_gradients(layer)
    if keras.backend.backend() == "tensorflow" and all(one.built for one in layers):
        _build_optimizer(model)
    try:
        state = find_state(model)
    except ValueError:  # layers of different options: there is no file for the whole
        return
    if state is not None and state.block is None:
        warn_of_unsaved(model, state.variables().values())


def _build_optimizer(model: keras.Model) -> None:
    """Create the optimizer's variables before TensorFlow traces the first step.

    Keras creates them within that step, and TensorFlow traces a function that creates
    variables twice (`keras/src/backend/tensorflow/trainer.py`).
    """
    optimizer = model.optimizer
    if optimizer is not None and not optimizer.built:
        with model.distribute_strategy.scope():
            optimizer.build(model.trainable_variables)


def _separate_averages(model: keras.Model) -> None:
    """Give averages their own arrays."""
    shared = shared_averages(model)
    if shared and _adapted_layers(model):
        for variable, average in shared:
            average.assign(ops.copy(variable))


def _refuse_to_quantize(model: keras.Model) -> None:
    """Refuse before the first layer is quantized."""
    if _adapted_layers(model):
        raise ValueError(
            f"Model '{model.name}' is adapted by RandLoRA: its kernels cannot be "
            "quantized now. Quantize first, then call `enable_randlora`; or call "
            "`merge_randlora(model)`, then `model.quantize(...)`."
        )
