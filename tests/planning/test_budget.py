"""Ranks for a wanted number of parameters, against a search by hand."""

import re

import keras
import pytest
from keras import layers
from models import EXAMPLES, attention, structure_of, values_of

import keras_randlora as kr


def dense_stack(*widths):
    """Return a model of `Dense` layers of these widths."""
    hidden = [layers.Dense(w, name=f"d_{i}") for i, w in enumerate(widths[1:])]
    return keras.Sequential([keras.Input((widths[0],)), *hidden])


def count(sides, rank):
    """Return the trainable parameters of kernels with these smaller sides."""
    total = 0
    for s in sides:
        num_bases = 1
        while num_bases * rank < s:
            num_bases += 1
        total += num_bases * (rank + s)
    return total


MODELS = {
    "one kernel": (lambda: dense_stack(64, 64), [64]),
    "three kernels": (lambda: dense_stack(20, 33, 7, 12), [20, 7, 7]),
    "attention": (attention, [6, 6, 6, 6, 3]),
}
BUDGETS = [1, 10, 35, 100, 400, 1000, 5000, 10**9]


@pytest.mark.parametrize("name", MODELS)
def test_no_other_rank_comes_nearer(name):
    build, sides = MODELS[name]
    model = build()
    for parameters in BUDGETS:
        rank = kr.rank_for_budget(model, parameters, "all-linear")
        distance = abs(count(sides, rank) - parameters)
        ranks = range(1, max(sides) + 1)
        best = min(abs(count(sides, r) - parameters) for r in ranks)
        assert distance == best, parameters


def test_known_ranks():
    model = dense_stack(64, 64)
    # 64 bases of 1 + 64, 16 of 4 + 64, and one of 64 + 64.
    assert kr.rank_for_budget(model, 4160, "all-linear") == 1
    assert kr.rank_for_budget(model, 1088, "all-linear") == 4
    assert kr.rank_for_budget(model, 128, "all-linear") == 64
    assert kr.rank_for_budget(model, 1, "all-linear") == 64


def test_of_equally_near_ranks_the_largest_is_taken():
    # Smaller side 3: rank 1 trains 12, rank 2 trains 10, rank 3 trains 6.
    model = dense_stack(5, 3)
    assert kr.rank_for_budget(model, 11, "all-linear") == 2
    assert kr.rank_for_budget(model, 8, "all-linear") == 3


@pytest.mark.parametrize("parameters", [12, 57, 300])
def test_the_rank_gives_the_count(parameters):
    model = attention()
    rank = kr.rank_for_budget(model, parameters)
    assert kr.enable_randlora(model, rank).adapter == count([6] * 4, rank)


def test_rank_like_lora():
    model = dense_stack(64, 64)
    # LoRA of rank 8 trains 8 * (64 + 64) = 1024; 15 bases of 5 + 64 are 897, 16 of
    # 4 + 64 are 1088.
    assert kr.rank_like_lora(model, 8, "all-linear") == 4
    assert kr.rank_like_lora(model, 1, "all-linear") == 64


def test_rank_like_lora_counts_every_kernel():
    model = dense_stack(20, 33, 7, 12)
    # LoRA of rank 3 trains 3 * (53 + 40 + 19) = 336; rank 1 trains 532, rank 2
    # 10 * (2 + 20) + 2 * 4 * (2 + 7) = 292.
    assert kr.rank_like_lora(model, 3, "all-linear") == 2


def test_the_default_targets_are_those_of_the_model():
    model = EXAMPLES["llama3"].build()  # query: smaller side 16, value: 8, two blocks
    for parameters in (100, 300, 700):
        rank = kr.rank_for_budget(model, parameters)
        best = min(abs(count([16, 8] * 2, r) - parameters) for r in range(1, 17))
        assert abs(count([16, 8] * 2, rank) - parameters) == best


@pytest.mark.parametrize("function", [kr.rank_for_budget, kr.rank_like_lora])
@pytest.mark.parametrize(
    "number, error", [(0, ValueError), (-5, ValueError), (1e6, TypeError)]
)
def test_bad_numbers(function, number, error):
    name = "parameters" if function is kr.rank_for_budget else "lora_rank"
    message = f"`{name}` must be a positive integer. Received: {name}={number}"
    with pytest.raises(error, match=re.escape(message)):
        function(dense_stack(6, 4), number, "all-linear")


@pytest.mark.parametrize("function", [kr.rank_for_budget, kr.rank_like_lora])
def test_the_model_is_only_looked_at(function):
    model = attention()
    before = structure_of(model), values_of(model)
    function(model, 50)
    with pytest.raises(ValueError, match="`targets` matches no layer"):
        function(model, 50, "qurey")
    assert (structure_of(model), values_of(model)) == before
