"""The owner of the shared bases: what it holds, slices, draws and never writes."""

import json

import keras
import numpy as np
import pytest
from backend import BACKEND, as_numpy, evaluate, h5_arrays
from drawn import draw_a, draw_b
from keras import layers, ops

import keras_randlora as kr
from keras_randlora.bases import BasisSpec
from keras_randlora.layers import RandLoRADense
from keras_randlora.update.bank import BasisBank
from keras_randlora.update.formula import UpdateShape

# basis -> (sparsity, factor to unit variance)
SPECS = {
    "uniform": (None, 1.0),
    "normal": (None, 1.0),
    "binary": (2.0, 1.0),
    "sparse": (6.0, 3.0**0.5),
    "very_sparse": (8.0, 2.0),
    "ternary": (50.0, 5.0),
}
TERNARY = ["binary", "sparse", "very_sparse", "ternary"]
STORAGES = ["stored", "regenerated"]
every_basis = pytest.mark.parametrize("basis", SPECS)

LARGE = UpdateShape.of_kernel(9, 14, rank=2)
SMALL = UpdateShape.of_kernel(8, 5, rank=2)


def bank_of(basis="uniform", shapes=(LARGE,), **kwargs):
    spec = BasisSpec(basis, SPECS[basis][0], seed=3)
    return BasisBank.for_shapes(shapes, spec, **kwargs)


def read(bank, shape, dtype="float32"):
    return [as_numpy(basis) for basis in evaluate(lambda: bank.bases(shape, dtype))]


def test_for_shapes_takes_the_largest_of_each_side():
    shapes = [
        UpdateShape.of_kernel(2, 4, rank=2),
        UpdateShape.of_kernel(3, 20, rank=2),
        UpdateShape.of_kernel(11, 11, rank=2),
    ]
    bank = bank_of(shapes=shapes)
    sizes = bank.rank, bank.a_columns, bank.b_rows, bank.b_columns
    assert sizes == (2, 11, 20, 12)
    assert bank.basis_a.shape == (2, 11)
    assert bank.basis_b.shape == (20, 12)


@every_basis
@pytest.mark.parametrize("storage", STORAGES)
def test_a_smaller_shape_gets_the_leading_part_at_unit_variance(basis, storage):
    bank = bank_of(basis, storage=storage)
    drawn_a, drawn_b = (drawn.astype("float32") for drawn in bank.draw())
    scale = np.float32(SPECS[basis][1])
    basis_a, basis_b = read(bank, SMALL)
    assert basis_a.shape == (2, 5)
    assert basis_b.shape == (8, 6)
    assert np.array_equal(basis_a, drawn_a[:, :5] * scale)
    assert np.array_equal(basis_b, drawn_b[:8, :6] * scale)


@every_basis
def test_a_bank_of_its_own_has_the_numbers_of_a_shared_one(basis):
    alone, shared = bank_of(basis, [SMALL]), bank_of(basis, [SMALL, LARGE])
    for one, other in zip(read(alone, SMALL), read(shared, SMALL), strict=True):
        assert np.array_equal(one, other)


@every_basis
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_regenerated_bases_are_the_stored_ones(basis, dtype):
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
    stored = read(bank_of(basis, dtype=policy), LARGE, dtype)
    regenerated = bank_of(basis, dtype=policy, storage="regenerated")
    for one, other in zip(stored, read(regenerated, LARGE, dtype), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_both_storages_agree_on_the_float32_bases_of_a_mixed_policy(policy):
    """Merging reads float32 bases: they must be the ones that were trained with."""
    stored = read(bank_of(dtype=policy), LARGE)
    regenerated = read(bank_of(dtype=policy, storage="regenerated"), LARGE)
    for one, other in zip(stored, regenerated, strict=True):
        assert one.tobytes() == other.tobytes()


@every_basis
def test_entries_have_unit_variance(basis):
    shape = UpdateShape.of_kernel(300, 301, rank=100)
    _, basis_b = read(bank_of(basis, [shape]), shape)
    # Of 90,000 draws; the guarded diagonal adds up to 1/300 of sparsity/2.
    assert abs(np.mean(basis_b)) < 0.05
    assert 0.9 < np.mean(np.square(basis_b, dtype="float64")) < 1.1


@pytest.mark.parametrize("basis", TERNARY)
def test_ternary_bases_are_held_as_int8(basis):
    bank = bank_of(basis)
    assert bank.basis_a.dtype == bank.basis_b.dtype == "int8"
    values = set(np.unique(as_numpy(bank.basis_b)))
    assert values <= {-1, 0, 1}


@pytest.mark.parametrize(
    "policy, dtype",
    [
        ("float32", "float32"),
        ("mixed_bfloat16", "bfloat16"),
        ("bfloat16", "bfloat16"),
        ("mixed_float16", "float16"),
    ],
)
def test_dense_bases_are_held_in_the_compute_dtype(policy, dtype):
    bank = bank_of("uniform", dtype=policy)
    assert bank.basis_a.dtype == bank.basis_b.dtype == dtype


def test_stored_bases_are_never_trainable():
    bank = bank_of()
    bank.trainable = True
    assert [weight.name for weight in bank.weights] == ["basis_a", "basis_b"]
    assert bank.trainable_weights == []


def test_regenerated_bases_are_held_nowhere():
    bank = bank_of(storage="regenerated")
    assert bank.weights == []
    assert bank.stored() == ()


@pytest.mark.parametrize(
    "kernel, rank, bases, served",
    [
        ((9, 14), 2, None, True),
        ((14, 9), 2, None, True),
        ((8, 5), 2, None, True),
        ((9, 14), 3, None, False),  # another rank
        ((10, 14), 2, None, False),  # A has nine columns
        ((9, 15), 2, None, False),  # B has fourteen rows
        ((9, 14), 2, 1, True),
    ],
)
def test_serves_what_is_no_larger_and_of_the_same_rank(kernel, rank, bases, served):
    assert bank_of().serves(UpdateShape.of_kernel(*kernel, rank, bases)) is served


def test_a_bank_for_few_bases_does_not_serve_more():
    few = bank_of(shapes=[UpdateShape.of_kernel(9, 14, 2, num_bases=2)])
    assert few.b_columns == 4
    assert not few.serves(LARGE)


@every_basis
@pytest.mark.parametrize("storage", STORAGES)
def test_config_round_trip_gives_the_same_bank(basis, storage):
    bank = bank_of(basis, storage=storage, name="bank", dtype="mixed_bfloat16")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(bank)))
    assert config["registered_name"] == "keras_randlora>BasisBank"
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == bank.get_config()
    for one, other in zip(again.draw(), bank.draw(), strict=True):
        assert one.tobytes() == other.tobytes()


def test_an_unknown_storage_is_refused():
    message = r"`storage` must be one of \['stored', 'regenerated'\]. Received: "
    with pytest.raises(ValueError, match=message + "storage='kept'"):
        bank_of(storage="kept")


def two_layers(bank):
    inputs = keras.Input((9,))
    x = RandLoRADense(14, rank=2, bank=bank, name="first")(inputs)
    return keras.Model(inputs, RandLoRADense(5, rank=2, bank=bank, name="second")(x))


def test_layers_share_one_pair():
    bank = bank_of(shapes=[LARGE, UpdateShape.of_kernel(14, 5, rank=2)])
    model = two_layers(bank)
    names = [weight.name for weight in model.weights]
    assert names.count("basis_a") == names.count("basis_b") == 1
    assert model.get_layer("first").bank is model.get_layer("second").bank is bank


def test_no_basis_is_written_to_a_weights_file(tmp_path):
    bank = bank_of(shapes=[LARGE, UpdateShape.of_kernel(14, 5, rank=2)])
    path = tmp_path / "model.weights.h5"
    two_layers(bank).save_weights(path)
    shapes = [array.shape for array in h5_arrays(path).values()]
    assert (9, 14) in shapes  # a kernel
    assert (2, 5) in shapes  # λ
    assert tuple(bank.basis_a.shape) not in shapes
    assert tuple(bank.basis_b.shape) not in shapes


@pytest.mark.skipif(BACKEND != "jax", reason="asks JAX")
@pytest.mark.parametrize(
    "options",
    [{}, {"basis": "sparse"}, {"basis": "kronecker"}, {"basis_storage": "regenerated"}],
    ids=str,
)
@pytest.mark.parametrize("compute", ["materialized", "factored"])
def test_no_basis_is_a_constant_of_what_jax_compiles(options, compute):
    import jax

    model = keras.Sequential([keras.Input((256,)), layers.Dense(256, name="d")])
    kr.enable_randlora(model, 8, "d", compute=compute, **options)

    def loss(trained, frozen, x):
        return ops.sum(model.stateless_call(trained, frozen, x, training=True)[0] ** 2)

    groups = model.trainable_variables, model.non_trainable_variables
    values = [[variable.value for variable in group] for group in groups]
    traced = jax.make_jaxpr(jax.grad(loss))(*values, np.ones((4, 256), "float32"))
    # A, the smaller of the bases, has 8 × 256 entries.
    assert sum(np.size(constant) for constant in traced.consts) < 8 * 256


def test_the_bases_are_the_drawn_ones():
    """The bank adds nothing of its own to the kind's own draws."""
    bank = bank_of("sparse")
    spec = BasisSpec("sparse", 6.0, seed=3)
    assert np.array_equal(as_numpy(bank.basis_a), draw_a(spec, 2, 9))
    assert np.array_equal(as_numpy(bank.basis_b), draw_b(spec, 14, 10))
