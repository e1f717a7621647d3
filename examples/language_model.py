"""A causal language model and text to train it on, for the distributed examples.

Without a preset the model is a tiny byte-level Llama with random weights, and the text
is that of Python's `help()`, so nothing is downloaded.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from command_line import DefaultsHelp
from text_data import Windows, load_documents, pack

TINY = dict(
    vocabulary_size=256,
    num_layers=2,
    num_query_heads=8,
    num_key_value_heads=8,
    hidden_dim=64,
    intermediate_dim=96,
)


class Bytes:
    """A tokenizer whose tokens are the bytes of the text."""

    def tokenize(self, inputs: str) -> list[int]:
        """Return the UTF-8 bytes of a text."""
        return list(inputs.encode())


class StepLosses(keras.callbacks.Callback):
    """Print the mean loss of the steps so far after each step."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Print one line."""
        print_loss(batch + 1, float(logs["loss"]))


def print_loss(steps: int, loss: float) -> None:
    """Print the mean loss, in nats per token, after some steps."""
    print(f"steps: {steps}  mean loss: {loss:.7f}", flush=True)


def option_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that the examples share."""
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0],
        formatter_class=DefaultsHelp,
    )
    add = parser.add_argument
    add("--preset", help="keras-hub preset, hf://…, kaggle://…, folder, smollm2")
    add("--output", type=Path, default=Path("adapter.safetensors"), help="file")
    add("--steps", type=int, default=10, help="optimizer steps")
    add("--batch-size", type=int, default=8, help="windows a step, over all devices")
    add("--sequence-length", type=int, default=64, help="tokens of a window")
    add("--rank", type=int, default=8, help="rank of each basis")
    add("--learning-rate", type=float, default=1e-2, help="of Adam")
    return parser


def load(preset: str | None) -> tuple[Any, Any]:
    """Return a causal language model without its preprocessor, and its tokenizer."""
    import keras_hub

    if preset is None:
        keras.utils.set_random_seed(0)  # the same weights in every process
        backbone = keras_hub.models.LlamaBackbone(**TINY)
        return keras_hub.models.LlamaCausalLM(backbone, preprocessor=None), Bytes()

    from pretrained import resolve, restore_word_split

    source = resolve(preset)
    tokenizer = keras_hub.models.Tokenizer.from_preset(source)
    restore_word_split(tokenizer, source)
    return keras_hub.models.CausalLM.from_preset(source, preprocessor=None), tokenizer


def windows_for(arguments: argparse.Namespace, tokenizer: Any) -> Windows:
    """Return the windows of all steps, in the order in which they are used."""
    windows = pack(load_documents(), tokenizer, arguments.sequence_length)
    order = np.random.default_rng(0).permutation(len(windows.token_ids))
    order = np.resize(order, arguments.steps * arguments.batch_size)
    return Windows(*(array[order] for array in windows))


def loss_and_optimizer(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `compile` that the examples share."""
    return dict(
        optimizer=keras.optimizers.Adam(arguments.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )


def fit(
    model: Any,
    windows: Windows,
    batch_size: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Train a compiled model for one epoch, and print the losses."""
    model.fit(
        windows.inputs,
        windows.targets,
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
        callbacks=[StepLosses(), *callbacks],
    )
