"""Updates as matrices: against merging, LoRA's factors, and spectra known by hand."""

import keras
import numpy as np
import pytest
from keras import ops
from models import EXAMPLES, randomize

import keras_randlora as kr
from keras_randlora import analysis


def trained(name="attention", rank=2):
    """Return an adapted model whose updates are not zero, and its kernels before."""
    model = EXAMPLES[name].build()
    before = analysis.kernels(model)
    kr.enable_randlora(model, rank, "all-linear")
    randomize(model, scale=1.0, seed=0)
    return model, before


def test_an_update_is_what_merging_adds():
    model, before = trained()
    found = analysis.updates(model)
    kr.merge_randlora(model)
    again = analysis.updates(model, before)
    assert list(found) == list(again) != []
    for path, matrix in found.items():
        np.testing.assert_allclose(matrix, again[path], rtol=1e-4, atol=1e-4)


def test_only_changed_layers_have_an_update():
    model = EXAMPLES["mlp"].build()
    before = analysis.kernels(model)
    model.get_layer("hidden_2").kernel.assign(before["hidden_2"] + 1.0)
    assert list(analysis.updates(model, before)) == ["hidden_2"]


def test_kernels_are_those_that_the_layers_compute_with():
    model, before = trained()
    with_adapters = analysis.kernels(model)
    kr.merge_randlora(model)
    merged = analysis.kernels(model)
    for path, kernel in merged.items():
        np.testing.assert_allclose(kernel, with_adapters[path], rtol=1e-5, atol=1e-5)
        assert np.abs(kernel - before[path]).max() > 0.1


def test_the_update_of_keras_lora_is_the_product_of_its_factors():
    layer = keras.layers.EinsumDense("ab,bcd->acd", (3, 2))
    layer.build((None, 5))
    layer.enable_lora(2, lora_alpha=6)
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    a = ops.convert_to_numpy(layer.lora_kernel_a)
    by_hand = 3.0 * a @ np.ones(layer.lora_kernel_b.shape)
    np.testing.assert_allclose(
        analysis.update_matrix(layer), by_hand.reshape(5, 6), rtol=1e-5
    )
    # Factors of its own for each of the three heads, here two equal rows.
    assert analysis.update_rank(layer) == 3


def test_full_rank_is_seen_as_such():
    model, _ = trained("mlp")
    ranks = {p: analysis.update_rank(m) for p, m in analysis.updates(model).items()}
    assert ranks == {"hidden_1": 6, "hidden_2": 5, "head": 3}


def test_an_update_of_zero_has_rank_zero():
    model = EXAMPLES["mlp"].build()
    kr.enable_randlora(model, 2, "all-linear")
    layer = model.get_layer("hidden_1")
    assert analysis.update_rank(layer) == 0
    assert analysis.effective_rank(layer) == 0.0
    np.testing.assert_array_equal(analysis.update_spectrum(layer), np.zeros(6))


def test_spectra_known_by_hand():
    matrix = np.diag([1.0, -4.0, 2.0, 0.0])[:, :3]
    np.testing.assert_allclose(analysis.update_spectrum(matrix), [4, 2, 1])
    assert analysis.update_rank(np.diag([1.0, 1e-3, 1e-9])) == 2
    assert analysis.update_rank(np.diag([1.0, 1e-3, 1e-9]), tolerance=0.01) == 1
    assert analysis.effective_rank(np.eye(7)) == pytest.approx(7)
    assert analysis.effective_rank(np.diag([5.0, 0, 0])) == pytest.approx(1)
    # Shares 1/2, 1/4, 1/4: an entropy of 1.5 bits.
    assert analysis.effective_rank(np.diag([2.0, 1, 1])) == pytest.approx(2**1.5)


def test_what_cannot_be_told_is_refused():
    model = EXAMPLES["mlp"].build()
    plain = model.get_layer("hidden_1")
    with pytest.raises(ValueError, match="hidden_1' has no adapter.*pass `base`"):
        analysis.update_matrix(plain)
    with pytest.raises(ValueError, match=r"shape \(6, 10\). Received: shape \(3,\)"):
        analysis.update_matrix(plain, np.zeros(3))
    with pytest.raises(ValueError, match="of type Flatten"):
        analysis.update_matrix(keras.layers.Flatten())
    with pytest.raises(ValueError, match="No layer of model 'mlp' has an adapter"):
        analysis.updates(model)
    with pytest.raises(ValueError, match="no kernel of layer 'hidden_1'"):
        analysis.updates(model, {})
    with pytest.raises(ValueError, match=r"array of shape \(2, 2, 2\)"):
        analysis.update_spectrum(np.zeros((2, 2, 2)))
