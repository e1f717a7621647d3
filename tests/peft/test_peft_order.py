"""The update against Hugging Face PEFT's own RandLora, number by number."""

import warnings

import numpy as np
import pytest
from backend import BACKEND, as_numpy, assert_close

from keras_randlora.bases.operators import DenseOperator
from keras_randlora.update.formula import UpdateShape, kernel_update

if BACKEND != "torch":
    pytest.skip("PEFT runs on torch", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")

import torch

ALPHA = 10

# name -> (inputs, outputs, rank); the rank divides the smaller side in the last only.
CASES = {
    "inputs below outputs": (7, 10, 3),
    "inputs above outputs": (11, 5, 2),
    "square": (7, 7, 3),
    "rank above the smaller side": (4, 9, 6),
    "rank divides": (8, 12, 4),
}


class OneLinear(torch.nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = torch.nn.Linear(inputs, outputs)


def peft_layer(inputs, outputs, rank):
    """Return a PEFT layer with random λ and γ."""
    config = peft.RandLoraConfig(
        r=rank, randlora_alpha=ALPHA, randlora_dropout=0.0, target_modules=["linear"]
    )
    model = peft.get_peft_model(OneLinear(inputs, outputs), config)
    layer = model.base_model.model.linear
    with torch.no_grad():
        layer.randlora_lambda["default"].normal_()
        layer.randlora_gamma["default"].normal_()
    return layer


@pytest.mark.parametrize("inputs, outputs, rank", CASES.values(), ids=CASES)
def test_kernel_update_is_pefts_delta_weight(inputs, outputs, rank):
    layer = peft_layer(inputs, outputs, rank)
    basis_a = layer.randlora_A["default"].float()  # (r, 1, s)
    basis_b = layer.randlora_B["default"].float()  # (l, n, r)
    shape = UpdateShape.of_kernel(inputs, outputs, rank)
    assert tuple(basis_a.shape) == (rank, 1, shape.smaller)
    assert tuple(basis_b.shape) == (shape.larger, shape.num_bases, rank)
    update = kernel_update(
        shape,
        layer.randlora_lambda["default"].detach(),
        layer.randlora_gamma["default"].detach(),
        basis_a[:, 0],
        DenseOperator(basis_b.flatten(start_dim=1)),
        ALPHA / rank,
    )
    expected = layer.get_delta_weight("default").detach()  # (outputs, inputs)
    assert np.any(as_numpy(expected))
    assert_close(as_numpy(update), as_numpy(expected).T, 1e-5)


def test_peft_counts_the_same_trainable_parameters():
    layer = peft_layer(7, 10, 3)
    trained = [p.numel() for p in layer.parameters() if p.requires_grad]
    assert sum(trained) == UpdateShape.of_kernel(7, 10, 3).trainable == 30
