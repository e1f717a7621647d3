"""Metadata of an adapter file: what a user of the adapter needs beside its values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import keras

CLASS_NAMES, NUM_CLASSES, LENGTH = "class_names", "num_classes", "sequence_length"


def metadata_of(
    model: keras.Model, metadata: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return metadata, of a keras-hub classifier with its number of classes and length.

    Raises:
        TypeError: JSON cannot hold it.
        ValueError: The number of class names is not that of the classes.
    """
    found: dict[str, Any] = {}
    count = getattr(model, NUM_CLASSES, None)
    if isinstance(count, int):
        found[NUM_CLASSES] = count
        length = getattr(getattr(model, "preprocessor", None), LENGTH, None)
        if length is not None:
            found[LENGTH] = length
    found |= _as_json(metadata or {})
    names = found.get(CLASS_NAMES)
    if names is not None and count is not None and len(names) != count:
        raise ValueError(
            f"`metadata` names {len(names)} classes, and model '{model.name}' has "
            f"{count}. Received: {CLASS_NAMES}={names!r}."
        )
    return found


def _as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON makes of metadata: lists of tuples, text of keys."""
    try:
        return dict(json.loads(json.dumps(dict(metadata), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`metadata` must hold what JSON can: texts, numbers, lists and mappings of "
            f"them ({error}). Received: metadata={metadata!r}."
        ) from error
