"""Conversion from and to adapters of Hugging Face PEFT's RandLora.

In: a folder that PEFT wrote, or an adapted model. Out: the model with that adapter, or
a folder that PEFT loads. Use it as `kr.peft.load(model, "folder")`.
"""

from keras_randlora.peft.adapter import load, save
from keras_randlora.peft.folder import read_folder, require_free

__all__ = ["load", "read_folder", "require_free", "save"]
