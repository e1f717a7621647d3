"""The losses that the examples draw."""

import numpy as np
import pytest

from examples import curves

pytestmark = pytest.mark.any_backend


def test_the_losses_behind_running_means():
    losses = [3.0, 1.0, 2.0, 0.5]
    means = [np.mean(losses[: n + 1]) for n in range(4)]
    np.testing.assert_allclose(curves.step_losses(means), losses)
    assert curves.step_losses([]) == []


def test_smoothed_by_the_steps_around():
    found = curves.smoothed([0, 0, 6, 0, 3], reach=1)
    np.testing.assert_allclose(found, [0, 2, 2, 3, 1.5])


def test_a_picture_with_and_without_other_losses(tmp_path):
    for number, held_out in enumerate(([], [(0, 3.0), (4, 1.0)])):
        path = tmp_path / f"{number}.png"
        words = dict(label="held out", token="token", title="A run")
        curves.draw(path, [3.0, 2.0, 1.5, 1.0], held_out, **words)
    plain, more = (len((tmp_path / f"{n}.png").read_bytes()) for n in (0, 1))
    assert 10_000 < plain < more
