"""Data for training language models.

In: a model of keras-hub and records. Out: batches of tokens with weights for the loss.
"""

from keras_randlora.data.instruction import instruction_data, instruction_prompt

__all__ = ["instruction_data", "instruction_prompt"]
