"""Abstract models: weights with shapes and dtypes, without values."""

from __future__ import annotations

import difflib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_randlora.tools import keras_internals

_EXAMPLE = '{"class": "Llama3Backbone", "num_layers": 32, ...}'


def abstract_backbone(source: Any, dtype: Any = None) -> keras.Model:
    """Return a keras-hub backbone without values.

    Its layers, paths, shapes and dtypes are those of the real one. It cannot compute.

    Args:
        source: A folder with a `config.json` of keras-hub or Hugging Face; a preset
            name or handle, of which only that file is downloaded; or a mapping: the
            content of such a file, or `"class"` with a backbone of
            `keras_hub.models` and the arguments of its constructor.
        dtype: dtype or dtype policy of the backbone; default the configuration's.

    Raises:
        ValueError: There is no such configuration, or it cannot be read.
        TypeError: `source` is none of these.
    """
    options = {} if dtype is None else {"dtype": dtype}
    if isinstance(source, Mapping):
        with keras_internals.without_values():
            return _of_mapping(dict(source), options)
    if isinstance(source, (str, os.PathLike)):
        with keras_internals.without_values():
            return _of_preset(os.fspath(source), options)
    raise TypeError(
        "A plan is made for a Keras model, a preset's folder or name, or a "
        f"configuration such as {_EXAMPLE}. Received: {source!r} (of type "
        f"{type(source).__name__})."
    )


def _of_mapping(config: dict[str, Any], options: dict[str, Any]) -> keras.Model:
    import keras_hub

    if "model_type" in config or "registered_name" in config:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config), "utf-8")
            return _of_preset(folder, options)
    name = config.pop("class", None)
    backbones = {
        key: value
        for key, value in vars(keras_hub.models).items()
        if isinstance(value, type) and issubclass(value, keras_hub.models.Backbone)
    }
    if name not in backbones:
        near = difflib.get_close_matches(str(name), backbones, n=3)
        raise ValueError(
            "A configuration names a backbone of `keras_hub.models` as its 'class', "
            f"such as {_EXAMPLE}. Received: class={name!r}. Nearest: {near}."
        )
    return backbones[name](**config, **options)


def _of_preset(preset: str, options: dict[str, Any]) -> keras.Model:
    import keras_hub

    try:
        return keras_hub.models.Backbone.from_preset(
            preset, load_weights=False, **options
        )
    # An unreachable model hub raises whatever its client raises.
    except Exception as error:
        raise ValueError(
            f"The configuration of preset '{preset}' could not be read: {error} Pass a "
            f"folder with its config.json, or the configuration, such as {_EXAMPLE}."
        ) from error
