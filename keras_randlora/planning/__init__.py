"""Prediction of the memory and parameters of fine-tuning.

In: a model or a preset and the options. Out: a `Plan` in bytes, or a rank.
"""

from keras_randlora.planning.budget import (
    rank_for_budget,
    rank_like_lora,
)
from keras_randlora.planning.planner import (
    Plan,
    plan,
)

__all__ = [
    "Plan",
    "plan",
    "rank_for_budget",
    "rank_like_lora",
]
