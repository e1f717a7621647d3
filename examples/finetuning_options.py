"""The options of `randlora_finetuning.py`, and what a run with them needs."""

import argparse
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

from command_line import BACKENDS, DefaultsHelp, OneLineParser, UserError, positive
from pretrained import LANGUAGE_MODELS

DTYPES = ("float32", "bfloat16", "mixed_bfloat16")
TEMPLATES = ("alpaca", "chatml", "gemma", "llama3", "mistral")
# A resumed run may differ from the interrupted one in these.
FREE = ("output_dir", "resume", "backend", "device", "patience", "merge_to")
FREE += ("num_epochs", "max_steps", "prompt", "answers", "tensorboard", "wandb")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = OneLineParser(
        prog="randlora_finetuning.py",
        description="Fine-tune a language model with RandLoRA.",
        formatter_class=DefaultsHelp,
    )
    add = parser.add_argument
    names = ", ".join(LANGUAGE_MODELS)
    add("--backend", choices=BACKENDS, default="jax", help="what Keras runs on")
    add("--device", choices=("cpu", "gpu"), help="default: a GPU if there is one")
    add(
        "--base_model",
        default="smollm2",
        help=f"{names}; or a keras-hub preset, hf://…, kaggle://…, folder",
    )
    add(
        "--data_path",
        type=Path,
        help="records (.json, .jsonl: Alpaca, messages, prompt and completion), or "
        "plain text; default: Python's own help",
    )
    add(
        "--template",
        choices=TEMPLATES,
        help="text around questions and answers; default: alpaca for Alpaca records, "
        "the model's own for messages, none for prompts",
    )
    add("--output_dir", type=Path, default=Path("randlora-output"), help="results")
    add("--batch_size", type=positive(int), default=4, help="rows per step")
    add(
        "--gradient_accumulation_steps",
        type=positive(int),
        default=1,
        help="passes per step: less memory, the same steps",
    )
    add("--num_epochs", type=positive(float), default=1, help="number of epochs")
    add("--max_steps", type=positive(int), help="maximum number of steps")
    add("--learning_rate", type=positive(float), default=3e-4, help="peak value")
    add(
        "--warmup_ratio",
        type=fraction,
        default=0.1,
        help="share of the steps in which the learning rate rises",
    )
    add("--weight_decay", type=not_negative, default=0.0, help="of AdamW")
    add("--dtype", choices=DTYPES, help="of the frozen model; default: the preset's")
    add("--cutoff_len", type=positive(int), default=256, help="most tokens of a row")
    add(
        "--val_set_size",
        type=count_or_fraction,
        default=64,
        help="records for validation: a count, or a fraction below 1; 0 for none",
    )
    add("--eval_step", type=positive(int), default=50, help="steps between validations")
    add(
        "--save_step",
        type=positive(int),
        default=100,
        help="steps per checkpoint; one more is saved at the end or an interruption",
    )
    add(
        "--patience",
        type=positive(int),
        help="validations without a lower loss before early stopping",
    )
    add("--rank", type=positive(int), default=32, help="rank of each basis")
    add("--randlora_alpha", type=positive(float), help="default: 20 times the rank")
    add("--randlora_dropout", type=float, default=0.0, help="on the adapter's input")
    add(
        "--randlora_target_modules",
        help="names, globs, attention, mlp, all-linear, separated by commas; "
        "default: the model's own choice",
    )
    bases = parser.add_mutually_exclusive_group()
    bases.add_argument("--basis", help="distribution of the bases; default: uniform")
    for name in ("sparse", "very_sparse"):
        bases.add_argument(
            f"--{name}",
            dest="basis",
            action="store_const",
            const=name,
            default=argparse.SUPPRESS,
            help=f"the same as --basis {name}",
        )
    add("--use_lora", action="store_true", help="Keras's own LoRA, for comparison")
    add(
        "--quantize",
        nargs="?",
        choices=("int8", "int4"),
        const="int4",
        help="quantize the frozen kernels to 8 or 4 bits",
    )
    add("--seed", type=int, default=0, help="of the bases and the order of the rows")
    add("--prompt", help="a question to answer before and after training")
    add(
        "--answers",
        type=count,
        default=2,
        help="held-out records to answer before and after training",
    )
    add("--resume", action="store_true", help="resume from the last checkpoint")
    add("--merge_to", type=Path, help="also write the merged model: folder or .keras")
    add("--tensorboard", type=Path, metavar="DIR", help="log for TensorBoard")
    add(
        "--wandb",
        nargs="?",
        const="keras-randlora",
        metavar="PROJECT",
        help="log to Weights & Biases",
    )
    options = parser.parse_args(arguments)
    check_together(parser, options)
    return options


def check_together(parser: OneLineParser, options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if options.batch_size % options.gradient_accumulation_steps:
        parser.error(
            "--batch_size must be a multiple of --gradient_accumulation_steps. "
            f"Received: {options.batch_size} and {options.gradient_accumulation_steps}"
        )
    if options.patience and not options.val_set_size:
        parser.error("--patience needs validation. Received: --val_set_size 0")
    if options.use_lora:
        own = ("basis", "randlora_alpha", "randlora_dropout", "merge_to")
        for name in own:
            if getattr(options, name):
                parser.error(f"--{name} belongs to RandLoRA: drop it or --use_lora")


def count_or_fraction(text: str) -> float:
    """Return a count, or a fraction below 1, or 0."""
    value = float(text)
    if value < 0 or not math.isfinite(value) or (value > 1 and value % 1):
        raise argparse.ArgumentTypeError(
            f"must be a count, a fraction below 1, or 0. Received: {text}"
        )
    return value


def count(text: str) -> int:
    """Return a count, which may be 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative. Received: {text}")
    return value


def not_negative(text: str) -> float:
    """Return a number that is at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must not be negative. Received: {text}")
    return value


def fraction(text: str) -> float:
    """Return a number from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(
            f"must be at least 0 and below 1. Received: {text}"
        )
    return value


def require_packages(options: argparse.Namespace) -> None:
    """Check that the loggers are installed, before the work begins."""
    needed = {"tensorboard": ("tensorflow", "tensorboard"), "wandb": ("wandb",)}
    for option, packages in needed.items():
        for package in packages:
            if getattr(options, option) and importlib.util.find_spec(package) is None:
                raise UserError(
                    f"--{option} needs a package that is not installed: pip install "
                    f"{package}"
                )


def chosen_device(options: argparse.Namespace) -> str:
    """Return `"gpu"` if the backend has one, else `"cpu"`."""
    found = has_gpu(options.backend)
    if options.device == "gpu" and not found:
        raise UserError(
            f"--device gpu: {options.backend} sees no GPU. Install it with support for "
            "yours, or pass --device cpu."
        )
    return "gpu" if found else "cpu"


def has_gpu(backend: str) -> bool:
    """Return whether a backend sees a GPU."""
    if backend == "torch":
        import torch

        return torch.cuda.is_available()
    import keras

    try:
        return bool(keras.distribution.list_devices("gpu"))
    except RuntimeError:  # JAX, where there is none
        return False
