"""Accuracy and likelihood of a classifier's outputs."""

import numpy as np
import pytest

from examples.classification import accuracy_and_loss, order


@pytest.mark.parametrize("offset", [5, 1e4])
def test_judged_by_accuracy_and_likelihood(offset):
    logits = np.log([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]) + offset
    accuracy, loss = accuracy_and_loss(logits, np.array([0, 1]))
    assert accuracy == 0.5
    assert loss == pytest.approx(-(np.log(0.7) + np.log(0.3)) / 2)


def test_order_goes_through_all_rows_before_one_comes_again():
    rows = order(10, 25, seed=3)
    assert sorted(rows[:10]) == sorted(rows[10:20]) == list(range(10))
    assert rows[:10].tolist() != rows[10:20].tolist()
    assert len(rows) == 25 and len(set(rows[20:])) == 5
    assert list(rows) != list(order(10, 25, seed=4))
