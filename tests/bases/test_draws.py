"""Bases: published vectors, pinned checksums, NumPy against `keras.ops`, full rank."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from drawn import draw_a, draw_a_ops, draw_b, draw_b_ops

from keras_randlora import bases
from keras_randlora.bases import distributions, draws, threefry

# name -> (basis, sparsity); every distribution, and the ternary one twice.
TESTS = str(Path(__file__).parents[1])
CASES = {
    "uniform": ("uniform", None),
    "normal": ("normal", None),
    "binary": ("binary", None),
    "sparse": ("sparse", None),
    "very_sparse": ("very_sparse", None),
    "ternary_100": ("ternary", 100),
    "ternary_200": ("ternary", 200),
    "kronecker": ("kronecker", None),
}
TERNARY = [name for name in CASES if name not in ("uniform", "normal", "kronecker")]
SHAPES = [(1, 1), (1, 7), (5, 2), (6, 37), (33, 16), (32, 129)]

# SHA-256 of `draw_a(spec, 6, 255)` then `draw_b(spec, 384, 258)`, seed 7, l = 384.
CHECKSUMS = {
    "uniform": "cced79eb90abe7953ac72f8a8d1d6a644f8452348f51d36791c17c674ffa691b",
    "normal": "ab72c5969a4882d9704f7cd7c9d7208bbb420ce4977d97cab90c8b147faaeb88",
    "binary": "57b87358327f24b2c068073465a17822f004db7ae8198eb9e1903e2c4ff991ef",
    "sparse": "9fe6ccd729a86fcbf8de8db26b7a33d1ffb7d376559fc972128e8f3e3a034e03",
    "very_sparse": "440e4bc05382f9ea26f9a46f80dc06ef6e6edda86c419b7e6e80382507d4face",
    "ternary_100": "25ad1c3f1497a2e601ef6769d4a07dd00ac0356c27034c82cb8f6cbbddae1506",
    "ternary_200": "fe051ef7561e9104545bff110ae497c951c7353daf947639fe54524e164e8c9c",
    "kronecker": "ee6b2071e72a8254ae1731e652c0f3c1538c8db11bf4fe0d9359334c8154dbc5",
}


def spec_of(name, seed=7, larger_side=384):
    basis, sparsity = CASES[name]
    sparsity = bases.resolve_sparsity(basis, sparsity, larger_side)
    return bases.BasisSpec(basis, sparsity, seed)


def checksum(name):
    spec = spec_of(name)
    data = draw_a(spec, 6, 255).tobytes() + draw_b(spec, 384, 258).tobytes()
    return hashlib.sha256(data).hexdigest()


def assert_same_bits(actual, expected):
    actual = keras.ops.convert_to_numpy(actual)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes()


def compilers():
    """Return the ways in which this backend traces a function."""
    if keras.backend.backend() == "jax":
        import jax

        return {"jax.jit": jax.jit}
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return {
            "tf.function": tf.function,
            "tf.function with XLA": lambda f: tf.function(f, jit_compile=True),
        }
    return {}


@pytest.mark.parametrize(
    "key, counter, words",
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
        (
            (0x13198A2E, 0x03707344),
            (0x243F6A88, 0x85A308D3),
            (0xC4923A9C, 0x483DF7A0),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_threefry_gives_the_published_words(key, counter, words):
    x0, x1 = (np.array([value], np.uint32) for value in counter)
    key_bits = np.array(key, np.uint32).view(np.int32)
    signed = [keras.ops.convert_to_tensor(x.view(np.int32)) for x in (x0, x1)]
    drawn = threefry.threefry_2x32_ops(keras.ops.convert_to_tensor(key_bits), *signed)
    drawn = [keras.ops.convert_to_numpy(x).view(np.uint32)[0] for x in drawn]
    assert drawn == list(words)
    assert [x[0] for x in threefry.threefry_2x32(key, x0, x1)] == list(words)


def test_an_entry_is_the_word_of_its_row_and_column():
    # Entry (3, 5) of B: counter (3, 5 // 2), second word; seed 9, B is number 1.
    x = threefry.threefry_2x32(
        (9, 1), np.array([3], np.uint32), np.array([2], np.uint32)
    )
    expected = np.float32(2 * (int(x[1][0]) >> 8) + 1 - 2**24)
    expected *= np.float32(np.sqrt(3) * 2**-24)
    spec = bases.BasisSpec("uniform", None, 9)
    assert draw_b(spec, 4, 6)[3, 5] == expected


@pytest.mark.parametrize(
    "basis, sparsity, word, entry",
    [
        ("uniform", None, 0, -1.7320507),
        ("uniform", None, 2**31 - 1, -1.0323827e-07),  # -√3 / 2**24
        ("uniform", None, 2**31, 1.0323827e-07),
        ("uniform", None, 2**32 - 1, 1.7320507),
        ("normal", None, 0, -4.324963),
        ("normal", None, 2**32 - 1, 4.324963),
        ("binary", 2.0, 2**31 - 1, 1),
        ("binary", 2.0, 2**31, -1),
        ("sparse", 6.0, 715827881, 1),  # floor(2**32 / 6) = 715827882
        ("sparse", 6.0, 715827882, 0),
        ("sparse", 6.0, 2**32 - 715827883, 0),
        ("sparse", 6.0, 2**32 - 715827882, -1),
    ],
)
def test_words_become_entries(basis, sparsity, word, entry):
    spec = bases.BasisSpec(basis, sparsity, 0)
    words = np.array([word], np.uint32)
    signed = keras.ops.convert_to_tensor(words.view(np.int32))
    by_ops = bases.kind_of(basis).distribution.entries_ops(signed, spec)
    by_numpy = bases.kind_of(basis).distribution.entries(words, spec)
    assert_same_bits(by_ops, by_numpy)
    assert by_numpy[0] == np.float32(entry)


@pytest.mark.any_backend
@pytest.mark.parametrize("name", CASES)
def test_checksums_are_pinned(name):
    assert checksum(name) == CHECKSUMS[name]


@pytest.mark.any_backend
def test_another_process_draws_the_same():
    code = (
        "import hashlib; from drawn import draw_a, draw_b;"
        "from keras_randlora.bases import BasisSpec; s = BasisSpec('normal', None, 7);"
        "d = draw_a(s, 6, 255).tobytes() + draw_b(s, 384, 258).tobytes();"
        "print(hashlib.sha256(d).hexdigest())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": TESTS},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split()[-1] == CHECKSUMS["normal"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_ops_equal_numpy_bit_for_bit(name, shape):
    spec = spec_of(name, seed=2**32 - 5)
    assert_same_bits(draw_a_ops(spec, *shape), draw_a(spec, *shape))
    assert_same_bits(draw_b_ops(spec, *shape), draw_b(spec, *shape))


@pytest.mark.skipif(not compilers(), reason="nothing to compile with")
@pytest.mark.parametrize("compiler", compilers())
@pytest.mark.parametrize("name", CASES)
def test_compiled_ops_equal_numpy_bit_for_bit(name, compiler):
    spec = spec_of(name)

    @compilers()[compiler]
    def draw():
        return draw_a_ops(spec, 6, 37), draw_b_ops(spec, 65, 43)

    basis_a, basis_b = draw()
    assert_same_bits(basis_a, draw_a(spec, 6, 37))
    assert_same_bits(basis_b, draw_b(spec, 65, 43))


@pytest.mark.parametrize("name", CASES)
def test_a_larger_pair_begins_with_the_smaller(name):
    spec = spec_of(name)
    large_a, large_b = draw_a(spec, 6, 300), draw_b(spec, 400, 300)
    for rows, columns in [(1, 1), (7, 5), (384, 258), (400, 33)]:
        np.testing.assert_array_equal(draw_a(spec, 6, columns), large_a[:, :columns])
        np.testing.assert_array_equal(
            draw_b(spec, rows, columns), large_b[:rows, :columns]
        )


@pytest.mark.parametrize("name", CASES)
def test_chunks_do_not_show(name, monkeypatch):
    spec = spec_of(name)
    whole_a, whole_b = draw_a(spec, 16, 101), draw_b(spec, 103, 101)
    monkeypatch.setattr(draws, "_CHUNK_COUNTERS", 7 * 51)
    np.testing.assert_array_equal(draw_a(spec, 16, 101), whole_a)
    np.testing.assert_array_equal(draw_b(spec, 103, 101), whole_b)


@pytest.mark.parametrize("name", CASES)
def test_seeds_and_bases_differ(name):
    spec, other = spec_of(name, seed=0), spec_of(name, seed=1)
    basis_a, basis_b = draw_a(spec, 64, 64), draw_b(spec, 64, 64)
    assert not np.array_equal(basis_a, basis_b)
    assert not np.array_equal(basis_a, draw_a(other, 64, 64))
    assert not np.array_equal(basis_b, draw_b(other, 64, 64))


@pytest.mark.parametrize("name", CASES)
def test_entries_have_zero_mean_and_unit_variance(name):
    spec = spec_of(name)
    entries = draw_b(spec, 1500, 1000).astype("float64") * bases.scale_of(spec)
    entries = entries[~np.eye(1500, 1000, dtype=bool)]
    deviation_of_square = np.sqrt(np.mean(entries**4) - 1)
    assert abs(entries.mean()) < 4 / np.sqrt(entries.size)
    # 64 × 64 entries of a Kronecker basis are one drawn number, but for the sign.
    drawn = entries.size / (64**2 if name == "kronecker" else 1)
    tolerance = 4 * deviation_of_square / np.sqrt(drawn)
    assert abs(np.mean(entries**2) - 1) <= tolerance
    # Neighbours, in a row (two words of one counter) and in a column, do not correlate.
    basis = draw_b(spec, 1500, 1000).astype("float64") * bases.scale_of(spec)
    assert abs(np.mean(basis[:, 0::2] * basis[:, 1::2])) < 0.006
    assert abs(np.mean(basis[0::2] * basis[1::2])) < 0.006


@pytest.mark.parametrize(
    "name, kurtosis, largest", [("uniform", 1.8, 1.7320508), ("normal", 3.0, 4.32497)]
)
def test_dense_entries_have_the_named_distribution(name, kurtosis, largest):
    entries = draw_b(spec_of(name), 2000, 1000).astype("float64")
    assert abs(np.mean(entries**4) - kurtosis) < 0.03
    assert largest * 0.99 < np.abs(entries).max() <= largest
    assert not np.any(entries == 0)


def test_normal_table_is_symmetric_with_unit_variance():
    table = distributions._normal_table().astype("float64")
    np.testing.assert_array_equal(table, -table[::-1])
    assert abs(np.mean(table**2) - 1) < 1e-8
    assert np.all(np.diff(table) > 0)


@pytest.mark.parametrize(
    "name, probability",
    [
        ("binary", 1 / 2),
        ("sparse", 1 / 6),
        ("very_sparse", 1 / 20),  # l = 400
        ("ternary_100", 1 / 100),
        ("ternary_200", 1 / 200),
    ],
)
def test_ternary_densities(name, probability):
    entries = draw_b(spec_of(name, larger_side=400), 1500, 1000)
    entries = entries[~np.eye(1500, 1000, dtype=bool)]
    assert set(np.unique(entries)) <= {-1, 0, 1}
    tolerance = 4 * np.sqrt(probability / entries.size)
    assert abs(np.mean(entries == 1) - probability) < tolerance
    assert abs(np.mean(entries == -1) - probability) < tolerance


@pytest.mark.parametrize("larger_side", [1, 2, 4])
def test_very_sparse_on_a_tiny_kernel_is_binary(larger_side):
    spec = spec_of("very_sparse", larger_side=larger_side)
    assert spec.sparsity == 2.0
    assert np.all(draw_b(spec, 8, 8) != 0)


@pytest.mark.parametrize("sparsity", [2, 6, 200, 2**31])
@pytest.mark.parametrize("rank", [1, 2, 6, 32])
def test_no_zero_columns(rank, sparsity):
    spec = bases.BasisSpec("ternary", sparsity, 0)
    basis_a, basis_b = draw_a(spec, rank, 256), draw_b(spec, 300, 256)
    columns = np.arange(256)
    assert np.all(basis_a[columns % rank, columns] != 0)
    assert np.all(basis_b[columns, columns] != 0)
    # The guard takes both signs, about equally often (binomial, four deviations).
    assert abs(np.sum(basis_b[columns, columns], dtype=int)) < 64
    assert abs(np.sum(basis_a[columns % rank, columns], dtype=int)) < 64


def test_guard_is_the_lowest_bit_where_the_entry_would_be_zero():
    spec = bases.BasisSpec("ternary", 2**31, 3)
    row = np.arange(9, dtype=np.uint32)
    words = np.stack(threefry.threefry_2x32((3, 1), row, row // 2))
    words = words[np.arange(9) % 2, np.arange(9)]
    expected = np.diag(1 - 2 * (words % 2).astype(int))
    np.testing.assert_array_equal(draw_b(spec, 9, 9), expected)


@pytest.mark.parametrize("rank", [6, 32])
@pytest.mark.parametrize("shape", [(384, 256), (256, 256)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_update_reaches_full_rank(name, shape, rank):
    larger, smaller = shape
    spec = spec_of(name, larger_side=larger)
    num_bases = -(-smaller // rank)
    basis_a = draw_a(spec, rank, smaller).astype("float64")
    basis_b = draw_b(spec, larger, num_bases * rank).astype("float64")
    rng = np.random.default_rng(0)
    lambda_ = rng.normal(size=(rank, num_bases))
    gamma = rng.normal(size=(num_bases, smaller))
    update = np.zeros(shape)
    for j in range(num_bases):
        b_j = basis_b[:, j::num_bases]
        update += b_j @ np.diag(lambda_[:, j]) @ basis_a @ np.diag(gamma[j])
    assert np.linalg.matrix_rank(update, rtol=1e-10) == 256


@pytest.mark.parametrize(
    "basis, sparsity, larger_side, expected",
    [
        ("uniform", None, 64, None),
        ("normal", None, 64, None),
        ("binary", None, 64, 2.0),
        ("sparse", None, 64, 6.0),
        ("very_sparse", None, 4096, 64.0),
        ("very_sparse", None, 2, 2.0),
        ("ternary", 2, 64, 2.0),
        ("ternary", 7.5, 64, 7.5),
        ("ternary", np.float32(100), 64, 100.0),
    ],
)
def test_resolve_sparsity(basis, sparsity, larger_side, expected):
    assert bases.resolve_sparsity(basis, sparsity, larger_side) == expected


@pytest.mark.parametrize(
    "basis, sparsity, error, message",
    [
        ("gauss", None, ValueError, "one of 'uniform', 'normal'.*basis='gauss'"),
        ("uniform", 6, ValueError, "only with basis='ternary'.*sparsity=6 with"),
        ("binary", 2.0, ValueError, "only with basis='ternary'"),
        ("ternary", None, ValueError, "must be given with basis='ternary'"),
        ("ternary", 1.9, ValueError, "from 2 to 2\\*\\*31.*sparsity=1.9"),
        ("ternary", 2**31 + 1, ValueError, "from 2 to 2\\*\\*31.*sparsity=2147483649"),
        ("ternary", 2.0**32, ValueError, "from 2 to 2\\*\\*31.*sparsity=4294967296.0"),
        ("ternary", float("nan"), ValueError, "sparsity=nan"),
        ("ternary", float("inf"), ValueError, "sparsity=inf"),
        ("ternary", "6", TypeError, "must be a number.*sparsity='6'"),
        ("ternary", True, TypeError, "must be a number.*sparsity=True"),
        ("uniform", "6", TypeError, "must be a number"),
    ],
)
def test_resolve_sparsity_refuses(basis, sparsity, error, message):
    with pytest.raises(error, match=message):
        bases.resolve_sparsity(basis, sparsity, 64)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("gauss", None, 0), ValueError, "basis='gauss'"),
        (("uniform", 2.0, 0), ValueError, "must be None for basis='uniform'"),
        (("sparse", None, 0), ValueError, "must be a number for basis='sparse'"),
        (("sparse", 1.0, 0), ValueError, "sparsity=1.0"),
        (("uniform", None, -1), ValueError, "in \\[0, 2\\*\\*32\\).*seed=-1"),
        (("uniform", None, 2**32), ValueError, "seed=4294967296"),
        (("uniform", None, 1.0), TypeError, "must be an integer.*seed=1.0"),
        (("uniform", None, True), TypeError, "seed=True"),
    ],
)
def test_spec_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        bases.BasisSpec(*arguments)


def test_spec_holds_plain_numbers():
    spec = bases.BasisSpec("sparse", np.float32(6), np.uint32(5))
    assert spec == bases.BasisSpec("sparse", 6.0, 5)
    assert type(spec.sparsity) is float and type(spec.seed) is int


def test_scale():
    assert bases.scale_of(spec_of("uniform")) == 1.0
    assert bases.scale_of(spec_of("binary")) == 1.0
    assert bases.scale_of(spec_of("ternary_200")) == 10.0
