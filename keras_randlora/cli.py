"""The command `keras-randlora`: inspect, merge, export, convert, upload adapters."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_randlora import peft
from keras_randlora.adapt import complete_config
from keras_randlora.export import FORMATS, export_merged
from keras_randlora.files import (
    Moment,
    PathLike,
    checked_suffix,
    fetched_file,
    fetched_folder,
    load_adapter,
    merge_adapters,
    read_adapter,
    save_adapter,
    upload_adapter,
)
from keras_randlora.peft import read_folder, require_free
from keras_randlora.tools import local_path, replacing
from keras_randlora_command import start_tensorflow

PROGRAM = "keras-randlora"
BACKENDS = ("jax", "tensorflow", "torch")
MISTAKES = (ValueError, TypeError, OSError, ImportError, RuntimeError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0, or 1 if the command failed, with the reason in one line on
        stderr.

    Raises:
        SystemExit: With status 2 if the command line is wrong, and with 0 after
            `--help`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a pipe of Windows has no λ
    arguments = _parser().parse_args(argv)
    backend = getattr(arguments, "backend", None)
    try:
        if backend not in (None, keras.backend.backend()):
            return _run_on(backend, argv)
        arguments.run(arguments)
    except MISTAKES as error:
        print(f"{PROGRAM}: error: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


# Commands


def info(arguments: argparse.Namespace) -> None:
    """Print the content of an adapter file or a PEFT folder."""
    path = fetched_file(arguments.file)
    if path.is_dir():
        _info_of_folder(path)
    else:
        _info_of_file(path)


def merge(arguments: argparse.Namespace) -> None:
    """Merge adapters into a model and save it as a plain model."""
    output = local_path(arguments.output)
    adapters: dict[PathLike, float] = dict(map(_weighted, arguments.adapter))
    if len(adapters) < len(arguments.adapter):
        raise ValueError("An adapter is named twice: give it once, with one weight.")
    _require_free(output, arguments.overwrite)
    for path in adapters:
        read_adapter(path)
    model = _load(arguments)
    _say(f"Merging {', '.join(f'{w:g} × {path}' for path, w in adapters.items())} …")
    merge_adapters(model, adapters)
    _say(f"Writing {output} …")
    output.parent.mkdir(parents=True, exist_ok=True)
    kind = FORMATS["keras" if output.suffix == ".keras" else "preset"]
    if kind.method is not None and not hasattr(model, kind.method):
        raise ValueError(
            f"A {type(model).__name__} has no preset: give an --output that ends in "
            "'.keras'."
        )
    with replacing(output) as place, complete_config(model):
        kind.write(model, place, _say)
    _say("Done.")


def export(arguments: argparse.Namespace) -> None:
    """Write the merged model for another runtime."""
    output = local_path(arguments.output)
    _require_free(output, arguments.overwrite)
    _require_suffix(output, FORMATS[arguments.format].suffix)
    read_adapter(arguments.adapter)
    model = _load(arguments)
    _say(load_adapter(model, arguments.adapter))
    _say(f"Writing {arguments.output} …")
    export_merged(
        model, arguments.output, arguments.format, overwrite=arguments.overwrite
    )
    _say("Done.")


def convert(arguments: argparse.Namespace) -> None:
    """Convert a PEFT folder to an adapter file, or back."""
    if arguments.from_peft:
        output = checked_suffix(arguments.output)
        _require_free(output, arguments.overwrite)
        read_folder(fetched_folder(arguments.from_peft))
        model = _load(arguments)
        _say(peft.load(model, arguments.from_peft))
        save_adapter(model, arguments.output)
        _say(f"Wrote {arguments.output}.")
    else:
        require_free(local_path(arguments.to_peft), arguments.overwrite)
        read_adapter(arguments.adapter)
        model = _load(arguments)
        _say(load_adapter(model, arguments.adapter))
        peft.save(model, arguments.to_peft, overwrite=arguments.overwrite)
        _say(f"Wrote {arguments.to_peft}.")


def upload(arguments: argparse.Namespace) -> None:
    """Upload an adapter file with a model card."""
    _say(f"Uploading {arguments.adapter} to {arguments.uri} …")
    page = upload_adapter(
        arguments.uri,
        arguments.adapter,
        base_preset=arguments.preset,
        data=arguments.data,
    )
    _say(f"Uploaded to {page}")


def _info_of_file(path: Path) -> None:
    file = read_adapter(path)
    _say(f"{path}: keras-randlora adapter, {_size(path)}")
    _say(_options(file.config.to_dict()))
    for layer, shape in file.layers.items():
        lambda_, gamma = file.tensors[f"{layer}/lambda"], file.tensors[f"{layer}/gamma"]
        _say(f"  {layer}  kernel {shape}, λ {lambda_.shape}, γ {gamma.shape}")
    for name in file.also_trained:
        _say(f"  {name}  fully trained")
    if file.moment is not None:
        _say(_moment(file.moment))
    if file.metadata:
        _say("metadata: " + _listed(file.metadata))
    count = sum(array.size for array in file.tensors.values())
    _say(f"{len(file.layers)} adapted layers, {count:,} trained parameters.")


def _info_of_folder(path: Path) -> None:
    folder = read_folder(path)
    _say(f"{path}: PEFT RandLora folder, {_size(*path.iterdir())}")
    _say(_options({k: v for k, v in folder.config.items() if v is not None}))
    for module, (lambda_, gamma) in folder.factors.items():
        _say(f"  {module}  λ {lambda_.shape}, γ {gamma.shape}")
    for name in folder.weights:
        _say(f"  {name}  fully trained")
    arrays = [array for pair in folder.factors.values() for array in pair]
    arrays += [*folder.biases.values(), *folder.weights.values()]
    count = sum(array.size for array in arrays)
    _say(f"{len(folder.factors)} adapted modules, {count:,} trained parameters.")


# Helpers


def _load(arguments: argparse.Namespace) -> keras.Model:
    """Load the base model: a `.keras` file, or a preset of keras-hub."""
    preset = arguments.preset
    _say(f"Loading {preset} on {keras.backend.backend()} …")
    if preset.endswith(".keras"):
        with _complete(preset):
            return keras.saving.load_model(preset, compile=False)
    start_tensorflow()  # which keras-hub imports
    import keras_hub

    task = Path(preset) / "task.json"
    saved = json.loads(task.read_text("utf-8")) if task.is_file() else {}
    name = arguments.model or saved.get("class_name", "CausalLM")
    if not hasattr(keras_hub.models, name):
        raise ValueError(f"keras-hub has no model class '{name}'.")
    options = {} if _has_preprocessor(Path(preset)) else {"preprocessor": None}
    with _complete(preset):
        return getattr(keras_hub.models, name).from_preset(preset, **options)


def _has_preprocessor(folder: Path) -> bool:
    """Whether a preset comes with a preprocessor; not a folder says nothing."""
    if (folder / "task.json").is_file():
        return (folder / "preprocessor.json").is_file()
    if (folder / "config.json").is_file():  # of transformers
        names = ("tokenizer.json", "*.model", "vocab.*", "preprocessor_config.json")
        return any(found for name in names for found in folder.glob(name))
    return True


@contextlib.contextmanager
def _complete(preset: str) -> Iterator[None]:
    """Report what Keras misses in an archive or a folder of something else."""
    try:
        yield
    except KeyError as error:
        raise ValueError(
            f"'{preset}' cannot be read as a model: it has no {error}."
        ) from error


def _run_on(backend: str, argv: Sequence[str]) -> int:
    """Run the command in a process with another backend: Keras chooses on import."""
    command = [sys.executable, "-m", "keras_randlora_command", *argv]
    return subprocess.call(command, env={**os.environ, "KERAS_BACKEND": backend})


def _weighted(adapter: str) -> tuple[str, float]:
    """Split `FILE[=WEIGHT]`."""
    path, _, weight = adapter.rpartition("=")
    try:
        return (path, float(weight)) if path else (adapter, 1.0)
    except ValueError:
        return adapter, 1.0


def _require_free(output: Path, overwrite: bool) -> None:
    """Refuse an existing output before the work begins."""
    if output.exists() and not overwrite:
        raise ValueError(f"'{output}' exists already. Pass --overwrite to replace it.")


def _require_suffix(output: Path, suffix: str | None) -> None:
    """Refuse a wrong suffix before the model is loaded."""
    if suffix is not None and output.suffix != suffix:
        raise ValueError(
            f"The file's name must end in '{suffix}'. Received: '{output}'."
        )


def _options(options: dict[str, object]) -> str:
    return "options: " + _listed(options)


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _moment(moment: Moment) -> str:
    value = "" if moment.value is None else f", {moment.monitor} {moment.value:g}"
    return f"saved after epoch {moment.epoch}, step {moment.step}{value}"


def _size(*files: Path) -> str:
    return f"{sum(f.stat().st_size for f in files if f.is_file()):,} bytes"


def _say(line: object) -> None:
    print(line, flush=True)


def _one_line(error: Exception) -> str:
    """Return the message in one line: its first and last line if it has several."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RuntimeError) and len(lines) > 2:
        lines = [lines[0], lines[-1]]
    return " ".join(lines) or type(error).__name__


# Arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Inspect, merge, export, convert and upload RandLoRA adapters.",
        epilog="`keras-randlora COMMAND --help` explains a command, with examples. "
        "Exit status: 0, 1 if a command failed, 2 if the command line was wrong.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = _command(
        commands,
        info,
        "Print options, layers and sizes of an adapter. No model is loaded.",
        "keras-randlora info adapter.safetensors",
        "keras-randlora info peft-folder/",
    )
    command.add_argument(
        "file", metavar="FILE", help="an adapter file or PEFT folder, or hf://…"
    )

    command = _command(
        commands,
        merge,
        "Merge one or several adapters into a model, and save a plain model that opens "
        "without keras-randlora: W + sum of WEIGHT * update.",
        "keras-randlora merge --preset gemma3_270m --adapter a.safetensors --output m/",
        "keras-randlora merge --preset base/ --adapter a.safetensors=0.7 \\\n"
        "      --adapter b.safetensors=0.3 --output merged.keras",
    )
    _add_model(command)
    command.add_argument(
        "--adapter",
        required=True,
        action="append",
        metavar="FILE[=WEIGHT]",
        help="an adapter file and its weight, default 1; may be repeated",
    )
    _add_output(command, "a folder for a keras-hub preset, or a file ending in .keras")

    command = _command(
        commands,
        export,
        "Write the merged model for another runtime.",
        "keras-randlora export --preset base/ --adapter a.safetensors \\\n"
        "      --format onnx --output model.onnx",
        "keras-randlora export --preset base/ --adapter a.safetensors \\\n"
        "      --format tf_saved_model --output saved_model/ --backend tensorflow",
    )
    _add_model(command)
    command.add_argument("--adapter", required=True, metavar="FILE")
    command.add_argument("--format", required=True, choices=FORMATS)
    _add_output(command, "a folder, or a file with the suffix of the format")

    command = _command(
        commands,
        convert,
        "Convert a RandLora folder of Hugging Face PEFT to an adapter file, or an "
        "adapter file to such a folder.",
        "keras-randlora convert --preset base/ --from-peft folder/ \\\n"
        "      --output a.safetensors",
        "keras-randlora convert --preset base/ --to-peft folder/ \\\n"
        "      --adapter a.safetensors",
    )
    _add_model(command)
    way = command.add_mutually_exclusive_group(required=True)
    way.add_argument("--from-peft", metavar="DIR", help="read this; needs --output")
    way.add_argument("--to-peft", metavar="DIR", help="write this; needs --adapter")
    command.add_argument("--adapter", metavar="FILE")
    _add_output(command, "an adapter file, ending in .safetensors", required=False)
    command.set_defaults(run=_checked_convert(command))

    command = _command(
        commands,
        upload,
        "Upload an adapter file to a hub, with a model card. No model is loaded.",
        "keras-randlora upload adapter.safetensors hf://user/name --preset gemma3_1b",
    )
    command.add_argument("adapter", metavar="FILE", help="an adapter file")
    command.add_argument("uri", metavar="URI", help="hf://user/name, kaggle://…")
    command.add_argument("--preset", metavar="P", help="its base, for the card")
    command.add_argument("--data", metavar="TEXT", help="its data, for the card")
    return parser


def _command(
    commands: Any,
    run: Callable[[argparse.Namespace], None],
    description: str,
    *examples: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        run.__name__,
        help=description.split(". ")[0].split(",")[0].rstrip("."),
        description=textwrap.fill(description, 78),
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--preset",
        required=True,
        metavar="P",
        help="the base model: a keras-hub preset (a name, a folder, 'hf://…'), or a "
        "file ending in .keras",
    )
    command.add_argument(
        "--model",
        metavar="CLASS",
        help="its class in keras_hub.models; default: what the preset says, else "
        "CausalLM",
    )
    command.add_argument(
        "--backend", choices=BACKENDS, help="default: Keras's own choice"
    )


def _add_output(
    command: argparse.ArgumentParser, help: str, required: bool = True
) -> None:
    command.add_argument("--output", required=required, metavar="PATH", help=help)
    command.add_argument(
        "--overwrite", action="store_true", help="replace what is there"
    )


def _checked_convert(
    command: argparse.ArgumentParser,
) -> Callable[[argparse.Namespace], None]:
    """Return `convert`, which requires the arguments of its direction."""

    def run(arguments: argparse.Namespace) -> None:
        needed, refused = ("output", "adapter")
        if arguments.to_peft:
            needed, refused = refused, needed
        if not getattr(arguments, needed) or getattr(arguments, refused):
            way = "--to-peft" if arguments.to_peft else "--from-peft"
            command.error(f"{way} goes with --{needed}, not with --{refused}")
        convert(arguments)

    return run
