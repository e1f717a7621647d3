"""The model card of an adapter: what it is, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_randlora.files.adapter_file import AdapterFile

_DEFAULTS_SHOWN = ("rank", "alpha", "basis", "seed")


def model_card(
    file: AdapterFile,
    uri: str,
    *,
    base_preset: str | None = None,
    data: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Return the card in Markdown, with the header that hubs read.

    Args:
        file: The adapter.
        uri: Where it goes.
        base_preset: The preset of its base, in keras-hub's form.
        data: What it was trained on.
        metrics: Results by name.
    """
    parts = [_header(base_preset), f"# {uri.rpartition('/')[2].partition('@')[0]}"]
    parts.append(_what_it_is(file, base_preset))
    if data:
        parts.append(f"Training data: {data}.")
    if metrics:
        rows = [f"| {name} | {value:g} |" for name, value in metrics.items()]
        parts.append("\n".join(["| metric | value |", "|---|---|", *rows]))
    parts += [_how_to_load(uri, base_preset), _options(file)]
    return "\n\n".join(parts) + "\n"


def _header(base_preset: str | None) -> str:
    lines = ["---", "library_name: keras-randlora", "tags:", "- randlora", "- keras"]
    # Hugging Face knows its own repositories only.
    if base_preset and base_preset.startswith("hf://"):
        lines.append(f"base_model: {base_preset.removeprefix('hf://')}")
    return "\n".join([*lines, "---"])


def _what_it_is(file: AdapterFile, base_preset: str | None) -> str:
    trained = sum(array.size for array in file.tensors.values())
    base = "another model"
    if file.base is not None:
        base = f"a {file.base.kind} of {file.base.parameters:,} parameters"
    named = f" (`{base_preset}`)" if base_preset else ""
    return (
        f"A RandLoRA adapter of {base}{named}: {trained:,} trained parameters in "
        f"{len(file.layers)} adapted layers."
    )


def _how_to_load(uri: str, base_preset: str | None) -> str:
    preset = base_preset or "the preset of its base"
    return f"""```python
import keras_hub
import keras_randlora as kr

model = keras_hub.models.CausalLM.from_preset("{preset}")  # or another task
kr.load_adapter(model, "{uri}")
```

For PEFT, `kr.peft.save(model, "folder")` writes the loaded adapter as a folder that
`peft.PeftModel.from_pretrained` reads, where PEFT's RandLora can hold it."""


def _options(file: AdapterFile) -> str:
    options: dict[str, Any] = file.config.to_dict()
    default = type(file.config)().to_dict()
    shown = {
        name: value
        for name, value in options.items()
        if name in _DEFAULTS_SHOWN or value != default.get(name)
    }
    rows = [f"| `{name}` | `{value}` |" for name, value in shown.items()]
    return "\n".join(["| option | value |", "|---|---|", *rows])
