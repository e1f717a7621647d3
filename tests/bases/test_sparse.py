"""Products with very many zeros on torch: which bases, where, and the results."""

import numpy as np
import pytest
from backend import BACKEND, assert_close

from keras_randlora.bases import BasisSpec
from keras_randlora.bases.sparse import SparseOperator, sparse_operations, sparse_pays
from keras_randlora.update.bank import BasisBank
from keras_randlora.update.formula import UpdateShape

ROWS, COLUMNS = 90, 60
SHAPE = UpdateShape.of_kernel(COLUMNS, ROWS, rank=6)

pytestmark = pytest.mark.skipif(
    BACKEND != "torch", reason="sparse products are torch's"
)


def bank_of(sparsity, **options):
    spec = BasisSpec("ternary", sparsity, seed=3)
    return BasisBank.for_shapes([SHAPE], spec, **options)


def is_sparse(bank, dtype="float32"):
    _, basis = bank.read(bank.stored(), SHAPE, dtype)
    return isinstance(basis, SparseOperator)


def test_bases_of_very_many_zeros_are_multiplied_by_their_entries():
    import torch

    assert is_sparse(bank_of(20)) and is_sparse(bank_of(200), torch.float32)
    assert not is_sparse(bank_of(19))
    assert not is_sparse(bank_of(200), "bfloat16")
    assert not is_sparse(bank_of(200, storage="regenerated"))


def test_compiled_products_are_dense(monkeypatch):
    import torch

    spec, entries = bank_of(200).spec, torch.zeros((ROWS, COLUMNS), dtype=torch.int8)
    assert sparse_pays(spec, entries)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not sparse_pays(spec, entries)


@pytest.mark.parametrize("sparsity", [20, 200])
def test_products_are_those_of_the_matrix(sparsity):
    import torch

    bank = bank_of(sparsity)
    _, basis = bank.read(bank.stored(), SHAPE, "float32")
    matrix = bank.draw()[1].astype("float64")
    assert np.any(~matrix.any(axis=1)) or sparsity == 20  # rows without an entry
    draw = np.random.default_rng(1).standard_normal
    wide, tall = draw((COLUMNS, 7)), draw((ROWS, 7))
    values = torch.from_numpy(wide.astype("float32"))
    assert_close(basis.expand(values).numpy(), matrix @ wide, 1e-5)
    assert_close(basis.expand_transposed(values).numpy(), (matrix @ wide).T, 1e-5)
    strided = torch.from_numpy(tall.T.astype("float32").copy()).T
    assert_close(basis.project(strided).numpy(), matrix.T @ tall, 1e-5)
    assert_close(basis.project_transposed(strided.T).numpy(), matrix.T @ tall, 1e-5)
    assert np.array_equal(basis.dense().numpy(), matrix)


def test_a_basis_is_analysed_once_for_each_size_and_anew_when_it_changes():
    import torch

    bank = bank_of(200)
    _, first = bank.read(bank.stored(), SHAPE, "float32")
    _, again = bank.read(bank.stored(), SHAPE, "float32")
    assert again is first
    smaller = UpdateShape.of_kernel(COLUMNS, ROWS - 1, rank=6)
    assert bank.read(bank.stored(), smaller, "float32")[1].dense().shape[0] == ROWS - 1
    other = -bank.draw()[1]
    with torch.no_grad():  # `assign` takes the bases of the seed only
        bank.basis_b.value.copy_(torch.tensor(other))
    _, changed = bank.read(bank.stored(), SHAPE, "float32")
    assert_close(changed.expand(torch.eye(COLUMNS)).numpy(), other, 0)
    assert_close(changed.project(torch.eye(ROWS)).numpy(), other.T, 0)


def test_a_basis_analysed_in_inference_mode_serves_training():
    import torch

    bank = bank_of(200)
    with torch.inference_mode():
        bank.read(bank.stored(), SHAPE, "float32")
    _, basis = bank.read(bank.stored(), SHAPE, "float32")
    values = torch.ones((COLUMNS, 2), requires_grad=True)
    basis.expand(values).sum().backward()
    assert_close(values.grad[:, 0].numpy(), bank.draw()[1].sum(axis=0), 1e-5)


def test_an_entry_counts_as_five_operations_of_a_dense_product():
    # 2 % of 90 × 60 entries, an addition and its like for each.
    assert sparse_operations(90, 60, bank_of(100).spec) == 2 * 108 * 5
    assert bank_of(100).operations(SHAPE) == 1080
