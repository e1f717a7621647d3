"""Adapters of Hugging Face PEFT's RandLora, loaded and saved without PEFT."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_randlora.adapt import (
    AdaptedState,
    Bases,
    Report,
    Selection,
    Site,
    adapted_state,
    enable_with_config,
    require_plain,
    select_addresses,
    warn_of_unsaved,
)
from keras_randlora.config import GIVEN, RandLoRAConfig, TrainBias
from keras_randlora.files import (
    check_adapter,
    fetched_folder,
    get_adapter,
    set_adapter,
)
from keras_randlora.layers import layout_of, named_weights
from keras_randlora.peft.folder import (
    CONFIG_NAME,
    TENSORS_NAME,
    PeftFolder,
    draw_bases,
    read_folder,
    require_free,
    write_folder,
)
from keras_randlora.peft.names import ModuleNames
from keras_randlora.tools import hosts_of, local_path, to_numpy
from keras_randlora.update import UpdateShape

_TRAIN_BIAS: dict[str, TrainBias] = {"none": "none", "randlora_only": "adapted"}
_PEFT_BIAS = {ours: theirs for theirs, ours in _TRAIN_BIAS.items()}
_PEFT_ALPHA = 640
_FACTORS = ("lambda", "gamma")

State = dict[str, np.ndarray]


def load(
    model: keras.Model,
    directory: str | os.PathLike[str],
    *,
    name_map: Mapping[str, str] | None = None,
) -> Report:
    """Adapt a plain model with an adapter that PEFT's RandLora trained.

    Layers, options and bases come from the folder. Biases of adapted layers
    (`bias="randlora_only"`) and fully trained linear layers (`modules_to_save`, a
    classifier's head) are loaded too, and stay trainable.

    Args:
        model: A plain keras-hub backbone or task with the same base weights.
        directory: A folder with `adapter_config.json` and
            `adapter_model.safetensors`, or its address on a hub, such as
            `"hf://user/name"` (see `files.hub`).
        name_map: Paths of modules in transformers by layer path, for layers that
            `keras_randlora.peft.names` has no table for.

    Returns:
        A `Report` of the adapted layers and the counts.

    Raises:
        ValueError: The folder is damaged, of another method than RandLora or made
            for another model; it holds something that has no place in the model,
            named in the message; or the model is adapted already. The model is
            unchanged.
        TypeError: The model is not a Keras model, or an option in the folder has
            the wrong type.
        FileNotFoundError: A file is missing.
        ModuleNotFoundError: The folder holds no bases (`save_projection=False`)
            and PyTorch, whose generator draws them, is not installed.

    Example:
    keras-hub models need no `name_map`.

    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> kr.peft.save(model, "adapter", name_map={"d": "net.0"})
    >>> kr.disable_randlora(model)
    >>> kr.peft.load(model, "adapter", name_map={"d": "net.0"}).trainable
    12
    """
    require_plain(model)
    directory = fetched_folder(directory)
    files = [directory / name for name in (CONFIG_NAME, TENSORS_NAME)]
    hosts_of(model.variables).require_same_files("peft.load", files)
    folder = read_folder(directory)
    names = ModuleNames(model, name_map)
    adapted = names.sites(folder.factors)
    state = {
        **_factor_state(folder, adapted),
        **_bias_state(folder, adapted),
        **_whole_state(folder, names, adapted),
    }
    config = _config_of(folder, adapted, state)
    selection = select_addresses(model, config.targets or (), config.also_train)
    _require_complete(state, selection, config)
    bases = folder.bases or _drawn_bases(folder, adapted)
    report = enable_with_config(model, config, selection, bases=bases)
    set_adapter(model, state)
    return report


def save(
    model: keras.Model,
    directory: str | os.PathLike[str],
    *,
    name_map: Mapping[str, str] | None = None,
    prefix: str | None = None,
    base_model: str | None = None,
    task_type: str | None = None,
    overwrite: bool = False,
) -> None:
    """Save the adapter of a model as a folder that PEFT loads.

    `peft.PeftModel.from_pretrained(transformers_model, directory)` then computes the
    same as the Keras model. PEFT may warn of missing keys: it expects the bases once
    per layer, and the folder holds them once. The folder is replaced atomically.

    Args:
        model: A model adapted by `enable_randlora` or `load`.
        directory: The folder to create.
        name_map: Paths of modules in transformers by layer path, for layers that
            `keras_randlora.peft.names` has no table for.
        prefix: Prefix of the backbone's modules in the transformers model, such as
            `"model."`. Default: that of the model with a head (`AutoModelForCausalLM`)
            for a keras-hub task, and of the bare model (`AutoModel`) for a backbone.
        base_model: Name or folder of the transformers model. PEFT's
            `AutoPeftModelForCausalLM` and similar classes need it, and `task_type`.
        task_type: Its task in PEFT, such as `"CAUSAL_LM"`.
        overwrite: Whether to replace an existing adapter folder.

    Raises:
        ValueError: The model is not adapted, PEFT has no place for something that
            was adapted or trained, named in the message, or a value is not finite.
        FileExistsError: There is something at `directory`.
        OSError: The folder cannot be written.

    Example:
    keras-hub models need no `name_map`.

    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> _ = kr.enable_randlora(model, rank=2, targets="d")
    >>> kr.peft.save(model, "adapter", name_map={"d": "net.0"})
    >>> sorted(os.listdir("adapter"))
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    directory = local_path(directory)
    hosts, doing = hosts_of(model.variables), f"peft.save to '{directory}'"
    with hosts.together(doing):  # what one process finds there is known to all
        if hosts.writes:
            require_free(directory, overwrite)
    state = adapted_state(model)
    names = ModuleNames(model, name_map, prefix)
    with hosts.together(doing):
        options = {
            "base_model_name_or_path": base_model,
            "task_type": task_type,
            "fan_in_fan_out": names.conv1d,
        }
        folder = _folder_of(model, state, names, options)
        if hosts.writes:
            write_folder(directory, folder)


def _folder_of(
    model: keras.Model,
    state: AdaptedState,
    names: ModuleNames,
    options: dict[str, Any],
) -> PeftFolder:
    """Return what a folder of an adapted model holds."""
    adapted = names.modules(state.selection.adapted)
    whole = names.modules(state.selection.also_trained)
    _require_representable(state)
    warn_of_unsaved(model, state.variables().values())
    values = get_adapter(model)
    check_adapter(values, {path: array.shape for path, array in values.items()})
    config = {
        **_peft_options(state.config),
        # An expression: PEFT matches the ends of paths in a list. Modules of another
        # model would match too, and silently stay without λ and γ.
        "target_modules": "|".join(map(re.escape, adapted)),
        # PEFT compares the ends of paths: "classifier" would be "pre_classifier" too.
        "modules_to_save": [f".{module}" for module in whole] or None,
        **options,
    }
    return PeftFolder(
        config=config,
        factors={
            module: (values[f"{site.address}/lambda"], values[f"{site.address}/gamma"])
            for module, site in adapted.items()
        },
        biases={
            module: values[f"{site.address}/bias"].reshape(-1)
            for module, site in adapted.items()
            if f"{site.address}/bias" in values
        },
        weights=_whole_weights(values, whole),
        bases=_peft_bases(adapted.values()),
    )


# From a folder to the state of a model, with the names of `get_adapter`.


def _factor_state(folder: PeftFolder, adapted: Mapping[str, Site]) -> State:
    state = {}
    for module, site in adapted.items():
        lambda_, gamma = folder.factors[module]
        shape = _update_shape(site, folder.rank)
        expected = (shape.rank, shape.num_bases), (shape.num_bases, shape.smaller)
        if (lambda_.shape, gamma.shape) != expected:
            raise ValueError(
                f"The adapter was made for another model: module '{module}' has λ and "
                f"γ of shapes {lambda_.shape} and {gamma.shape}. Layer '{site.path}', "
                f"{shape.inputs} by {shape.outputs} and r={shape.rank}, needs "
                f"{expected[0]} and {expected[1]}."
            )
        state[f"{site.address}/lambda"], state[f"{site.address}/gamma"] = lambda_, gamma
    return state


def _bias_state(folder: PeftFolder, adapted: Mapping[str, Site]) -> State:
    state = {}
    for module, bias in folder.biases.items():
        if module not in adapted:
            raise ValueError(
                f"The adapter holds a bias of module '{module}', which it does not "
                "adapt."
            )
        site = adapted[module]
        state[f"{site.address}/bias"] = _shaped_bias(f"{module}.bias", bias, site)
    return state


def _whole_state(
    folder: PeftFolder, names: ModuleNames, adapted: Mapping[str, Site]
) -> State:
    """Return the fully trained layers."""
    state = {}
    for name, array in folder.weights.items():
        module, _, tensor = name.rpartition(".")
        try:
            site = names.site(module)
        except ValueError as error:
            raise ValueError(
                f"The adapter holds the whole weight '{name}' (`modules_to_save`, or "
                f"embeddings of a changed vocabulary). {error}"
            ) from error
        if module in adapted or tensor not in ("weight", "bias"):
            raise ValueError(
                f"The adapter holds '{name}', which has no place in layer "
                f"'{site.path}'."
            )
        if tensor == "bias":
            state[f"{site.address}/bias"] = _shaped_bias(name, array, site)
        else:
            state[f"{site.address}/kernel"] = _kernel(name, array, site)
    return state


def _require_complete(
    state: State, selection: Selection, config: RandLoRAConfig
) -> None:
    """Check that the folder holds exactly the variables trained with these options."""
    trained: set[str] = set()
    for site in selection.adapted:
        trained |= {f"{site.address}/{name}" for name in _FACTORS}
    for site in selection.adapted:
        if config.train_bias == "adapted" and site.layer.bias is not None:
            trained.add(f"{site.address}/bias")
    for site in selection.also_trained:
        trained |= {f"{site.address}/{name}" for name in named_weights(site.layer)}
    for name in sorted(trained - set(state)):
        raise ValueError(f"The adapter has no tensor for '{name}' of the model.")
    for name in sorted(set(state) - trained):
        raise ValueError(
            f"The adapter holds a tensor for '{name}' of the model, but says bias="
            f"'{_PEFT_BIAS[config.train_bias]}'."
        )


def _kernel(name: str, weight: np.ndarray, site: Site) -> np.ndarray:
    layout = layout_of(site.layer)
    if weight.shape != (layout.outputs, layout.inputs):
        raise ValueError(
            f"The adapter was made for another model: '{name}' has shape "
            f"{weight.shape}. Layer '{site.path}' needs "
            f"{(layout.outputs, layout.inputs)}."
        )
    return to_numpy(layout.to_kernel(weight.T))


def _shaped_bias(name: str, bias: np.ndarray, site: Site) -> np.ndarray:
    shape = None if site.layer.bias is None else tuple(site.layer.bias.shape)
    if shape is None or bias.size != math.prod(shape):
        needs = "has none" if shape is None else f"needs {shape}"
        raise ValueError(
            f"The adapter was made for another model: '{name}' has shape "
            f"{bias.shape}. Layer '{site.path}' {needs}."
        )
    return bias.reshape(shape)


def _config_of(
    folder: PeftFolder, adapted: Mapping[str, Site], state: State
) -> RandLoRAConfig:
    """Return the options; `targets` and `also_train` are paths."""
    targets = tuple(site.address for site in adapted.values())
    trained = dict.fromkeys(name.rpartition("/")[0] for name in state)
    return RandLoRAConfig(
        rank=folder.rank,
        targets=targets,
        alpha=folder.config.get("randlora_alpha", _PEFT_ALPHA),
        basis=GIVEN,
        dropout=folder.config.get("randlora_dropout", 0.0),
        train_bias=_TRAIN_BIAS[folder.bias],
        also_train=tuple(path for path in trained if path not in targets),
    )


def _drawn_bases(folder: PeftFolder, adapted: Mapping[str, Site]) -> Bases:
    shapes = [_update_shape(site, folder.rank) for site in adapted.values()]
    return draw_bases(folder.config, *_peft_sides(shapes))


# From a model to a folder.


def _require_representable(state: AdaptedState) -> None:
    """Refuse what PEFT's RandLora cannot represent."""
    if state.config.train_bias == "all":
        raise ValueError(
            "train_bias='all' trains biases of layers that are not adapted, for which "
            "there is no place in the folder. Use train_bias='adapted', or "
            "`save_adapter`."
        )
    for site in state.selection.adapted:
        shape = site.layer.randlora.shape
        if shape.batch is not None:
            raise ValueError(
                f"The kernel of layer '{site.path}' is a batch of {shape.batch} "
                "matrices, for which PEFT's RandLora has no place. Use `save_adapter`."
            )
        full = math.ceil(shape.smaller / shape.rank)
        if shape.num_bases != full:
            raise ValueError(
                f"Layer '{site.path}' has {shape.num_bases} bases (num_bases="
                f"{state.config.num_bases}). PEFT always has {full} with its size and "
                "rank. Use `save_adapter`."
            )


def _whole_weights(values: State, whole: Mapping[str, Site]) -> State:
    """Return the fully trained layers, under the names of transformers."""
    weights = {}
    for module, site in whole.items():
        kernel = values[f"{site.address}/kernel"]
        matrix = layout_of(site.layer).to_matrix(kernel)
        weights[f"{module}.weight"] = to_numpy(matrix).T
        if f"{site.address}/bias" in values:
            weights[f"{module}.bias"] = values[f"{site.address}/bias"].reshape(-1)
    return weights


def _peft_bases(adapted: Iterable[Site]) -> Bases:
    """Return the bases, with unit variance, in the size that PEFT's loader needs."""
    layers = [site.layer for site in adapted]
    bank = layers[0].bank
    smaller, larger = _peft_sides([layer.randlora.shape for layer in layers])
    columns = math.ceil(smaller / bank.rank) * bank.rank
    all_of_it = UpdateShape(
        bank.a_columns, bank.b_rows, bank.rank, bank.b_columns // bank.rank
    )
    basis_a, basis_b = map(to_numpy, bank.bases(all_of_it, "float32"))
    return _fitted(basis_a, bank.rank, smaller), _fitted(basis_b, larger, columns)


def _peft_options(config: RandLoRAConfig) -> dict[str, Any]:
    alpha = config.alpha
    return {
        "peft_type": "RANDLORA",
        "inference_mode": True,
        "r": config.rank,
        "randlora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "randlora_dropout": config.dropout,
        "bias": _PEFT_BIAS[config.train_bias],
        "save_projection": True,
        "projection_prng_key": 0,
        "sparse": False,
        "very_sparse": False,
    }


def _fitted(matrix: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return the matrix cut to this size, or padded with zeros that no layer uses."""
    fitted = np.zeros((rows, columns), "float32")
    part = matrix[:rows, :columns]
    fitted[: part.shape[0], : part.shape[1]] = part
    return fitted


# Shapes.


def _peft_sides(shapes: Iterable[UpdateShape]) -> tuple[int, int]:
    """Return the sides of PEFT's bases, between the largest input and output."""
    sides = [(shape.inputs, shape.outputs) for shape in shapes]
    inputs, outputs = map(max, zip(*sides, strict=True))
    return min(inputs, outputs), max(inputs, outputs)


def _update_shape(site: Site, rank: int) -> UpdateShape:
    layout = layout_of(site.layer)
    return UpdateShape.of_kernel(layout.inputs, layout.outputs, rank)
