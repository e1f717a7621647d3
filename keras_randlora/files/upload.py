"""Upload of adapters to a hub, with a model card."""

from __future__ import annotations

import os
from collections.abc import Mapping

from keras_randlora.files.adapter_file import read_adapter
from keras_randlora.files.hub import ADAPTER_NAME, CARD_NAME, upload_files
from keras_randlora.files.model_card import model_card
from keras_randlora.tools import local_path


def upload_adapter(
    uri: str,
    adapter: str | os.PathLike[str],
    *,
    base_preset: str | None = None,
    data: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Upload an adapter file to a hub, from which `load_adapter(model, uri)` loads it.

    The repository gets `adapter.safetensors` and a model card, in one commit, and is
    made if need be. A card that is there stays as it is. The counterpart of keras-hub's
    `upload_preset`.

    Args:
        uri: `"hf://user/name"`, with `@branch` if need be, or
            `"kaggle://user/model/framework/variation"`.
        adapter: A file of `save_adapter`.
        base_preset: The preset of its base, such as `"gemma3_1b"`, for the card.
        data: What it was trained on, for the card.
        metrics: Results by name, for the card.

    Returns:
        The address of the repository's page.

    Raises:
        ValueError: The file is damaged or no adapter, or `uri` names no repository.
            Nothing is uploaded.
        FileNotFoundError: There is no such file.
        PermissionError: No account is logged in, or it may not write there.
        ConnectionError: The hub cannot be reached.
        ImportError: `huggingface_hub` or `kagglehub` is not installed.

    Example:
    ```python
    kr.save_adapter(model, "adapter.safetensors")
    kr.upload_adapter(
        "hf://user/tiny-stories", "adapter.safetensors", base_preset="gemma3_1b"
    )
    ```
    """
    path = local_path(adapter)
    file = read_adapter(path)
    card = model_card(file, uri, base_preset=base_preset, data=data, metrics=metrics)
    content = {ADAPTER_NAME: path.read_bytes(), CARD_NAME: card.encode()}
    return upload_files(uri, content, "Upload a RandLoRA adapter")
