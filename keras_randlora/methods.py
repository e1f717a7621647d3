"""Methods and guards that importing `keras_randlora` adds to `keras.Model`."""

from __future__ import annotations

import keras

from keras_randlora.adapt import (
    disable_randlora,
    enable_randlora,
    install_guards,
    merge_randlora,
    summary,
)
from keras_randlora.files import load_adapter, save_adapter

METHODS = {
    "enable_randlora": enable_randlora,
    "disable_randlora": disable_randlora,
    "merge_randlora": merge_randlora,
    "save_randlora": save_adapter,
    "load_randlora": load_adapter,
    "randlora_summary": summary,
}


def install() -> None:
    """Add `enable_randlora` and the other functions to `keras.Model` as methods."""
    for name, function in METHODS.items():
        setattr(keras.Model, name, function)
    install_guards()
