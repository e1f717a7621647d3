"""Accuracy and likelihood of a classifier's outputs."""

import numpy as np
import pytest

from examples.classification import accuracy_and_loss


@pytest.mark.parametrize("offset", [5, 1e4])
def test_judged_by_accuracy_and_likelihood(offset):
    logits = np.log([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]) + offset
    accuracy, loss = accuracy_and_loss(logits, np.array([0, 1]))
    assert accuracy == 0.5
    assert loss == pytest.approx(-(np.log(0.7) + np.log(0.3)) / 2)
