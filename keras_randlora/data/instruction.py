"""Data for instruction tuning: `instruction_data` and `instruction_prompt`."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from keras_randlora.adapt import accept_tokens
from keras_randlora.data.records import read_record, read_records
from keras_randlora.data.rendering import Renderer
from keras_randlora.data.tokens import Tokens, padded
from keras_randlora.tools import positive_integer, uint32

INPUTS = {"token_ids", "padding_mask"}


def instruction_data(
    model: keras.Model,
    records: Any,
    *,
    template: str | None = None,
    batch_size: int = 8,
    sequence_length: int | None = None,
    shuffle: bool = True,
    seed: int = 0,
) -> Any:
    """Return records as data for `fit` and `evaluate` of a causal language model.

    Works for every `keras_hub.models.CausalLM` with a preprocessor: Gemma, Llama,
    Mistral, Qwen, GPT-2 and others. The loss counts the answers and their end tokens,
    not prompts and not padding: compiled with `SparseCategoricalCrossentropy`, the loss
    of an epoch and of `evaluate` is the mean over the tokens of all answers. Each epoch
    has its own order.

    | record | the loss counts |
    |---|---|
    | `{"instruction": …, "input": …, "output": …}`, `input` is optional | `output` |
    | `{"messages": [{"role": …, "content": …}, …]}` | what the assistant says |
    | `{"prompt": …, "completion": …}`, or `response` | `completion` |
    | `{"text": …}` or a text | all |

    Columns work too: `{"prompts": [...], "responses": [...]}`.

    Args:
        model: A causal language model of keras-hub with its preprocessor.
        records: A list of records, also a data set of Hugging Face; columns of records;
            or the path of a `.json` or `.jsonl` file. Other keys are ignored.
        template: The text around questions and answers: `"alpaca"`, `"chatml"` (Qwen,
            SmolLM2), `"gemma"`, `"llama3"` or `"mistral"`. By default Alpaca records
            get `"alpaca"`, messages the template whose tokens are in the model's
            vocabulary, and prompts none.
        batch_size: Records per step. The last step of an epoch may have fewer.
        sequence_length: Tokens of a row. By default the longest record's, at most
            `model.preprocessor.sequence_length`. A longer record is cut at its end.
        shuffle: Whether to shuffle the records in each epoch.
        seed: Of the shuffling.

    Returns:
        A `tf.data.Dataset` of batches: inputs `token_ids` and `padding_mask`, targets,
        weights; each `(batch_size, sequence_length)`.

    Raises:
        ValueError: A record has none of these forms (the message names it and its
            keys); messages need a template; no answer fits; or the model has no
            preprocessor, or takes images.
        TypeError: `records` holds none.
        OSError: The file cannot be read.

    Example:
    ```python
    records = [{"instruction": "Name a liquid metal.", "output": "Mercury"}]
    model = keras_hub.models.CausalLM.from_preset("gemma3_1b")
    model.enable_randlora(rank=32)
    model.compile(
        keras.optimizers.AdamW(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(kr.instruction_data(model, records, batch_size=2), epochs=3)
    ```
    """
    preprocessor = _preprocessor(model)
    batch_size = positive_integer("batch_size", batch_size)
    seed = uint32("seed", seed)
    examples = Renderer(preprocessor, template).tokens(read_records(records))
    if sequence_length is None:
        longest = max(len(example.ids) for example in examples) - 1
        length = max(1, min(longest, preprocessor.sequence_length))
    else:
        length = positive_integer("sequence_length", sequence_length)
    fitting = _fitting(examples, length)
    padding = getattr(preprocessor.tokenizer, "pad_token_id", None) or 0
    arrays = padded(fitting, length, padding)
    accept_tokens()
    return _dataset(arrays, batch_size, seed if shuffle else None)


def instruction_prompt(
    model: keras.Model, record: Any, *, template: str | None = None
) -> str:
    """Return the prompt for `generate`, as `instruction_data` puts it before an answer.

    Args:
        model: A causal language model of keras-hub with its preprocessor.
        record: A record as in `instruction_data`. It needs no answer; one that it has
            is left out, of messages the last.
        template: As in `instruction_data`.

    Returns:
        The text. The preprocessor puts the start token before it.

    Raises:
        ValueError: The record has no known form, messages need a template, or the model
            has no preprocessor.

    Example:
    ```python
    prompt = kr.instruction_prompt(model, {"instruction": "Name a liquid metal."})
    model.generate(prompt, max_length=64)
    ```
    """
    preprocessor = _preprocessor(model)
    asked = read_record(record, "record", answered=False)
    return Renderer(preprocessor, template).prompt(asked)


def _preprocessor(model: keras.Model) -> Any:
    """Return the preprocessor of a causal language model."""
    preprocessor = getattr(model, "preprocessor", None)
    if not hasattr(model, "generate") or not hasattr(preprocessor, "tokenizer"):
        raise ValueError(
            "Text needs a causal language model of keras-hub with its preprocessor. "
            f"Received: a {type(model).__name__} with preprocessor={preprocessor!r}. "
            "Load it with `keras_hub.models.CausalLM.from_preset`, or set "
            "`model.preprocessor`."
        )
    names = set(model.input) if isinstance(model.input, dict) else INPUTS
    if names != INPUTS:
        raise ValueError(
            f"Model '{model.name}' also takes {sorted(names - INPUTS)}. Call "
            "`model.fit({'prompts': [...], 'responses': [...]})`, which keras-hub "
            "prepares with images."
        )
    return preprocessor


def _fitting(examples: list[Tokens], length: int) -> list[Tokens]:
    """Return the examples with an answer in their first tokens; warn of cut ones."""
    fitting = [e for e in examples if e.has_answer(length)]
    long = sum(example.is_cut(length) for example in examples)
    if not fitting:
        shortest = min(e.learned.index(True) for e in examples)
        raise ValueError(
            f"No answer begins within sequence_length={length}: the shortest prompt "
            f"has {shortest} tokens. Pass a larger `sequence_length`."
        )
    if long:
        warnings.warn(
            f"{long} of {len(examples)} records are longer than sequence_length="
            f"{length} and are cut; {len(examples) - len(fitting)} of them have no "
            "answer left and are not used.",
            stacklevel=3,
        )
    return fitting


def _dataset(arrays: Any, batch_size: int, seed: int | None) -> Any:
    """Return batches, shuffled for each epoch if there is a seed."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "`instruction_data` needs TensorFlow, as `fit` of keras-hub does: pip "
            "install tensorflow."
        ) from error
    inputs = {"token_ids": arrays.token_ids, "padding_mask": arrays.padding_mask}
    data = tf.data.Dataset.from_tensor_slices((inputs, arrays.targets, arrays.weights))
    if seed is not None:
        data = data.shuffle(len(arrays.targets), seed, reshuffle_each_iteration=True)
    return data.batch(batch_size)
