"""Backbones of keras-hub, and workarounds for it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras

from keras_randlora.tools import is_reversible


def backbone_of(model: keras.Model) -> keras.Model:
    """Return the backbone of a keras-hub task; any other model itself.

    A backbone may hold one of its own: D-FINE keeps its HGNetV2 as `backbone`.
    """
    if hasattr(model, "default_lora_layer_names"):
        return model
    return getattr(model, "backbone", model)


@contextlib.contextmanager
def complete_config(model: keras.Model) -> Iterator[None]:
    """Complete what keras-hub saves of a model inside a block, so that it loads.

    `Llama3Backbone.get_config` of keras-hub 0.32 omits `tie_word_embeddings`. A saved
    model with tied embeddings (Llama 3.2, SmolLM2) then fails to load: it gets its own
    output matrix, for which the file has no values.

    `Llama3Tokenizer.get_config` omits the special tokens. The loaded tokenizer looks
    for those of Llama, which other vocabularies (SmolLM2's) lack. It gets its start and
    its end; its other special tokens are read as before, but generated ones are shown.
    """
    backbone = backbone_of(model)
    tokenizer: Any = getattr(getattr(model, "preprocessor", None), "tokenizer", None)
    absent = _absent_tokens(tokenizer)
    with contextlib.ExitStack() as undo:
        for owner, missing in (
            (backbone, _tied_embeddings(backbone)),
            (tokenizer, _start_and_end(tokenizer)),
        ):
            if missing:
                config = {**owner.get_config(), **missing}
                _replace(undo, owner, "get_config", functools.partial(dict, config))
        if absent:
            _replace(undo, tokenizer, "save_assets", _saving(tokenizer, absent))
        yield


def _replace(undo: contextlib.ExitStack, owner: Any, name: str, method: Any) -> None:
    """Give one object a method of its own until `undo` ends."""
    object.__setattr__(owner, name, method)
    undo.callback(object.__delattr__, owner, name)


def _takes(owner: Any, name: str) -> bool:
    """Return whether a constructor has a parameter that `get_config` omits."""
    return (
        name in inspect.signature(type(owner).__init__).parameters
        and name not in owner.get_config()
    )


def _tied_embeddings(backbone: keras.Model) -> dict[str, Any]:
    embedding: Any = getattr(backbone, "token_embedding", None)
    if not is_reversible(embedding) or not _takes(backbone, "tie_word_embeddings"):
        return {}
    return {"tie_word_embeddings": embedding.tie_weights}


def _start_and_end(tokenizer: Any) -> dict[str, str]:
    """Return the special tokens of a tokenizer that its configuration omits."""
    if tokenizer is None or not _takes(tokenizer, "bos_token"):
        return {}
    return {"bos_token": tokenizer.start_token, "eos_token": tokenizer.end_token}


def _absent_tokens(tokenizer: Any) -> dict[str, int]:
    """Return the other tokens that a loaded tokenizer looks for, with unused ids.

    They are a set, which no configuration holds. No text and no model yields the ids:
    no merge leads to them, and they come after those of the model.
    """
    ends = _start_and_end(tokenizer)
    vocabulary = getattr(tokenizer, "vocabulary", None)
    if not ends or not vocabulary:
        return {}
    loaded = type(tokenizer).from_config({**tokenizer.get_config(), **ends})
    absent = sorted(set(loaded.special_tokens) - set(vocabulary))
    return {token: max(vocabulary.values()) + i for i, token in enumerate(absent, 1)}


def _saving(tokenizer: Any, absent: dict[str, int]) -> Callable[[str], None]:
    """Return a `save_assets` that adds tokens to the vocabulary in the file."""
    save_assets = tokenizer.save_assets

    def save(folder: str) -> None:
        save_assets(folder)
        file = Path(folder) / "vocabulary.json"
        vocabulary = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps({**vocabulary, **absent}), "utf-8")

    return save


def accept_tokens() -> None:
    """Let `fit` and `evaluate` of keras-hub's tasks take batches of tokens.

    keras-hub 0.32 hands every batch to the preprocessor of a task, which takes text
    only. A batch with `token_ids` now passes it by. A second call changes nothing.
    """
    import keras_hub

    task = keras_hub.models.Task
    former = task.preprocess_samples
    if former.__module__ == __name__:
        return

    def preprocess_samples(
        self: Any, x: Any, y: Any = None, sample_weight: Any = None
    ) -> Any:
        if isinstance(x, dict) and "token_ids" in x:
            return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        return former(self, x, y, sample_weight)

    task.preprocess_samples = preprocess_samples
