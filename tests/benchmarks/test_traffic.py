"""Tests of the bytes that the benchmarks count."""

import keras
import pytest

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="bytes are counted on torch"
)


@pytest.mark.parametrize(
    ("step", "numbers"),
    [
        (lambda a, b: a @ b, 12 + 20 + 15),
        (lambda a, b: a + 1.0, 12 + 12),
        (lambda a, b: a.add_(1.0), 12 + 12),
        (lambda a, b: a.add_(a), 12 + 12 + 12),
        (lambda a, b: a.copy_(a + a), 3 * 12 + 2 * 12),
        (lambda a, b: a.fill_(1.0), 12),
        (lambda a, b: a.T, 0),
        (lambda a, b: a[:, :2] * 2.0, 6 + 6),
        (lambda a, b: a.new_empty(7, 7), 0),
    ],
)
def test_bytes_of_operations(step, numbers):
    import torch

    from benchmarks import traffic

    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert traffic.of_step(lambda: step(a, b), cache_bytes=0) == 4 * numbers


def test_small_arrays_stay_in_the_cache():
    import torch

    from benchmarks import traffic

    large, small = torch.ones(10, 100), torch.ones(100)

    def step():
        return (large[0] + small).sum()

    assert traffic.of_step(step, cache_bytes=1000) == 4 * 100


def test_a_backward_pass_counts():
    import torch

    from benchmarks import traffic

    x, kernel = torch.ones(6, 4, requires_grad=True), torch.ones(4, 3)
    forward = 24 + 12 + 18
    assert traffic.of_step(lambda: x @ kernel, cache_bytes=0) == 4 * forward
    output = x @ kernel
    gradient = torch.ones(6, 3)
    backward = traffic.of_step(lambda: output.backward(gradient), cache_bytes=0)
    assert backward >= 4 * forward
