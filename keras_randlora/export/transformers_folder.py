"""Export as a transformers folder by keras-hub, without copies of tied weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import keras

from keras_randlora.export.stages import Say

_HEAD = "lm_head.weight"
_CHUNK = 2**24  # bytes


def write_transformers(model: keras.Model, path: str, say: Say) -> None:
    """Write the folder with keras-hub's own exporter.

    keras-hub writes the tied embeddings of Llama 3 and GPT-2 a second time, as the
    head. transformers ties them itself.
    """
    model.export_to_transformers(path)
    file = Path(path) / "model.safetensors"
    config = json.loads((Path(path) / "config.json").read_text("utf-8"))
    if file.exists() and config.get("tie_word_embeddings", True):
        drop_copy(file, _HEAD)


def drop_copy(file: Path, name: str) -> None:
    """Remove a tensor from a safetensors file if another tensor is equal to it."""
    with open(file, "rb") as source:
        size = int.from_bytes(source.read(8), "little")
        header = json.loads(source.read(size))
        start = 8 + size
        dropped = header.get(name)
        same = [
            entry
            for other, entry in header.items()
            if other != name
            and dropped
            and {**entry, "data_offsets": 0} == {**dropped, "data_offsets": 0}
            and _equal(source, start, entry, dropped)
        ]
        if not same:
            return
        begin, end = dropped["data_offsets"]
        del header[name]
        for entry in header.values():
            offsets = entry.get("data_offsets")
            if offsets and offsets[0] >= end:
                entry["data_offsets"] = [offset - (end - begin) for offset in offsets]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        smaller = file.with_suffix(".smaller")
        with open(smaller, "wb") as target:
            target.write(len(text).to_bytes(8, "little") + text)
            source.seek(start)
            _copy(source, target, begin)
            source.seek(start + end)
            shutil.copyfileobj(source, target, _CHUNK)
    os.replace(smaller, file)


def _equal(
    file: BinaryIO, start: int, one: dict[str, Any], other: dict[str, Any]
) -> bool:
    """Whether two tensors of the same type and shape have the same bytes."""
    begin, end = one["data_offsets"]
    apart = other["data_offsets"][0] - begin
    for place in range(begin, end, _CHUNK):
        parts = []
        for offset in (0, apart):
            file.seek(start + place + offset)
            parts.append(file.read(min(_CHUNK, end - place)))
        if parts[0] != parts[1]:
            return False
    return True


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    """Copy the next `count` bytes."""
    while count:
        part = source.read(min(_CHUNK, count))
        target.write(part)
        count -= len(part)
