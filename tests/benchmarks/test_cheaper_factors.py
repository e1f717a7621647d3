"""Tests of the ways to form a kernel that `benchmarks.cheaper_factors` compares."""

import json

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="the benchmark is plain torch"
)


@pytest.mark.parametrize("sizes", [(6,), (2, 3), (3, 1, 2), (2, 2, 3)])
def test_a_product_with_factors_is_one_with_their_kronecker_product(sizes):
    import torch

    from benchmarks.cheaper_factors import product

    rng = np.random.default_rng(0)
    factors = [rng.standard_normal((size, size)) for size in sizes]
    whole = np.ones((1, 1))
    for factor in factors:
        whole = np.kron(whole, factor)
    values = rng.standard_normal((len(whole), 5))
    found = product([torch.from_numpy(f) for f in factors], torch.from_numpy(values))
    np.testing.assert_allclose(found.numpy(), whole @ values)


def test_the_fast_transform_is_a_product_with_the_hadamard_matrix():
    import torch

    from benchmarks.cheaper_factors import hadamard

    matrix = np.ones((1, 1))
    for _ in range(6):
        matrix = np.kron(matrix, [[1, 1], [1, -1]])
    values = np.random.default_rng(0).standard_normal((128, 3))
    expected = np.kron(np.eye(2), matrix) @ values
    found = hadamard(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_each_way_is_measured(tmp_path, capsys):
    import torch

    from benchmarks import cheaper_factors

    path, threads = tmp_path / "factors.json", torch.get_num_threads()
    arguments = ["--sides", "128", "--rounds", "2", "--threads", str(threads)]
    assert cheaper_factors.main([*arguments, "--out", str(path)]) == 0
    (case,) = json.loads(path.read_text())["cases"]
    counts = {row["method"]: row["multiply_adds"] for row in case["rows"]}
    assert counts == {
        "Keras LoRA": 16,
        "64 (today)": 2 + 64,
        "two, equal": 16 + 8,
        "three, equal": 8 + 4 + 4,
        cheaper_factors.HADAMARD: 2 + 6,
    }
    assert all(row["median_s"] > 0 for row in case["rows"])
    assert "| three, equal" in capsys.readouterr().out
