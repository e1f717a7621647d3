"""Tests of `keras_randlora.layers.formed`: kernels formed once for a whole answer."""

import threading

import keras
import numpy as np
import pytest
from backend import as_numpy, assert_close
from models import EXAMPLES, randomize

import keras_randlora as kr
from keras_randlora.layers import formed, kernels_formed
from keras_randlora.layers.product import AdaptedProduct

FORMING = ("kernel_with_update", "materialized", "factored")


def adapted(name, **options):
    """Return an example, its model with a random adapter, and the adapted layers."""
    example = EXAMPLES[name]
    model = example.build()
    kr.enable_randlora(model, rank=2, targets="all-linear", **options)
    randomize(model)
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "randlora")]
    return example, model, layers


@pytest.fixture
def formings(monkeypatch):
    """Give the names of the products that formed an update, or used its factors."""
    seen = []

    def noting(name):
        method = getattr(AdaptedProduct, name)

        def noted(*args):
            seen.append(name)
            return method(*args)

        return noted

    for name in FORMING:
        monkeypatch.setattr(AdaptedProduct, name, noting(name))
    return seen


@pytest.mark.parametrize("compute", ["materialized", "factored"])
@pytest.mark.parametrize("name", ["subclassed", "attention", "cnn"])
def test_outputs_are_the_same(name, compute, formings):
    example, model, layers = adapted(name, compute=compute)
    expected = as_numpy(model(example.inputs()))
    formings.clear()
    with kernels_formed(layers):
        for _ in range(3):
            assert_close(as_numpy(model(example.inputs())), expected, 1e-5)
    assert formings == ["kernel_with_update"] * len(layers)


def test_a_kernel_that_is_read_is_formed_once(formings):
    _, model, layers = adapted("mlp")
    expected = [as_numpy(layer.kernel) for layer in layers]
    formings.clear()
    with kernels_formed(layers):
        for layer, kernel in zip(layers, expected, strict=True):
            assert_close(as_numpy(layer.kernel), kernel, 1e-6)
    assert len(formings) == len(layers)


def test_switching_off_counts(formings):
    example, model, layers = adapted("mlp")
    with kr.base_only(model):
        expected = as_numpy(model(example.inputs()))
    with kernels_formed(layers), kr.base_only(model):
        assert_close(as_numpy(model(example.inputs())), expected, 1e-6)


def test_products_have_the_dtype_of_the_layer():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        example, model, layers = adapted("mlp")
    finally:
        keras.config.set_dtype_policy("float32")
    with kernels_formed(layers):
        assert {
            keras.backend.standardize_dtype(formed.formed_kernel(layer.randlora).dtype)
            for layer in layers
        } == {"bfloat16"}


def test_quantized_kernels_stay(formings):
    model = EXAMPLES["mlp"].build()
    layer = model.get_layer("hidden_1")
    layer.quantize("int8")
    kr.enable_randlora(model, rank=2, targets="hidden_1")
    with kernels_formed([layer]):
        assert not formings


def test_nothing_is_formed_without_memory(monkeypatch, formings):
    _, _, layers = adapted("mlp")
    size = 4 * (6 * 10 + 10 * 5 + 5 * 3)
    for free, count in (2 * size, 3), (2 * size - 2, 0), (None, 3):
        monkeypatch.setattr(formed, "free_bytes", lambda free=free: free)
        with kernels_formed(layers):
            assert len(formings) == count
        formings.clear()


def test_other_threads_compute_for_themselves():
    _, _, layers = adapted("mlp")
    seen = []
    with kernels_formed(layers):
        thread = threading.Thread(
            target=lambda: seen.append(formed.formed_kernel(layers[0].randlora))
        )
        thread.start()
        thread.join()
        assert formed.formed_kernel(layers[0].randlora) is not None
    assert seen == [None]
    assert formed.formed_kernel(layers[0].randlora) is None


def test_generate_forms_each_kernel_once(formings):
    example, model, layers = adapted("llama3")
    model.compile(sampler="greedy")
    prompt = example.inputs()
    prompt["padding_mask"] = np.array(prompt["padding_mask"])
    prompt["padding_mask"][:, 2:] = 0
    with kr.merged(model):
        expected = as_numpy(model.generate(prompt, stop_token_ids=None)["token_ids"])
    formings.clear()
    answer = as_numpy(model.generate(prompt, stop_token_ids=None)["token_ids"])
    assert np.array_equal(answer, expected)
    assert formings == ["kernel_with_update"] * len(layers)
