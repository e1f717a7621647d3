"""Data for training language models.

In: a model of keras-hub and records. Out: batches of tokens with weights for the loss,
and prompts.
"""

from keras_randlora.data.instruction import instruction_data, instruction_prompt
from keras_randlora.data.records import Record, read_record, read_records
from keras_randlora.data.rendering import Renderer
from keras_randlora.data.templates import TEMPLATES
from keras_randlora.data.tokens import Tokens, padded

__all__ = [
    "TEMPLATES",
    "Record",
    "Renderer",
    "Tokens",
    "instruction_data",
    "instruction_prompt",
    "padded",
    "read_record",
    "read_records",
]
