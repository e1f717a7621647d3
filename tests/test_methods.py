"""Methods by name, as the comparisons in `examples/` put them on a model."""

import keras
import pytest
from models import EXAMPLES

import keras_randlora as kr
from examples import methods
from keras_randlora.adapt.state import adapted_state

# Kernels 6×10, 10×5 and a head 5×3 with biases 10, 5, 3.
HEAD = 5 * 3 + 3
ADAPTED = dict(exclude=["head"], also_train=["head"])


@pytest.mark.parametrize(
    "method, trained",
    [
        ("full", 60 + 10 + 50 + 5 + HEAD),
        ("head", HEAD),
        ("lora-2", 2 * (16 + 15) + HEAD),
        ("randlora-2", 3 * (2 + 6) + 3 * (2 + 5) + HEAD),
        ("randlora-2-n1", (2 + 6) + (2 + 5) + HEAD),
        ("randlora-2-n2-kronecker", 2 * (2 + 6) + 2 * (2 + 5) + HEAD),
        ("vera-4", (4 + 6) + (4 + 5) + HEAD),
    ],
)
def test_trained_numbers(method, trained):
    model = EXAMPLES["mlp"].build()
    assert methods.adapt(model, method, **ADAPTED) == trained


def test_equal_counts_leave_out_what_is_excluded():
    model = EXAMPLES["mlp"].build()
    rank = kr.rank_like_lora(model, 1, "all-linear", exclude=["head"])
    counts = {r: 31 - sum(-(-s // r) * (r + s) for s in (6, 5)) for r in range(1, 7)}
    assert abs(counts[rank]) == min(map(abs, counts.values()))
    methods.adapt(model, "randlora-as-lora-1", **ADAPTED)
    assert adapted_state(model).config.rank == rank


def test_bases_and_seed_are_those_of_the_name():
    model = EXAMPLES["mlp"].build()
    methods.adapt(model, "randlora-3-ternary100:2", seed=7, **ADAPTED)
    config = adapted_state(model).config
    assert (config.basis, config.sparsity, config.seed) == ("ternary", 100, 7)
    assert (config.rank, config.alpha) == (3, 6)


@pytest.mark.parametrize("method, alpha", [("vera-4:3", 12), ("randlora-4", 80)])
def test_alpha_is_a_multiple_of_the_rank(method, alpha):
    model = EXAMPLES["mlp"].build()
    methods.adapt(model, method, **ADAPTED)
    assert adapted_state(model).config.alpha == alpha


def test_other_adapters_get_the_frozen_layers():
    model, seen = EXAMPLES["mlp"].build(), []

    def dora(selection, rank, seed):
        seen.append(([site.name for site in selection.adapted], rank, seed))

    assert methods.adapt(model, "dora-5", seed=3, others={"dora": dora}, **ADAPTED) == (
        HEAD
    )
    assert seen == [(["hidden_1", "hidden_2"], 5, 3)]


@pytest.mark.parametrize("method", ["lora", "dora-2", "randlora-2-", "vera", "fulll"])
def test_an_unknown_method_changes_nothing(method):
    model = EXAMPLES["mlp"].build()
    with pytest.raises(ValueError, match=f"Received: '{method}'"):
        methods.adapt(model, method)
    assert len(model.trainable_variables) == 6
    assert all(type(x) is keras.layers.Dense for x in model.layers[1:])
