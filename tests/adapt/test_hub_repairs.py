"""Keras-hub's particulars: incomplete configurations, backbones, kernels it reads."""

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops
from models import LLAMA, randomize
from versions import since_hub

import keras_randlora as kr
from keras_randlora.adapt.hub_repairs import backbone_of, complete_config

TOKENS = {
    "token_ids": np.arange(1, 9, dtype="int32").reshape(2, 4),
    "padding_mask": np.ones((2, 4), "int32"),
}


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_comes_back(tied, tmp_path):
    backbone = keras_hub.models.Llama3Backbone(**LLAMA, tie_word_embeddings=tied)
    model = keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)
    before = backbone.get_config()
    with complete_config(model):
        model.save(tmp_path / "model.keras")
    assert backbone.get_config() == before
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert loaded.backbone.token_embedding.tie_weights is tied
    np.testing.assert_array_equal(
        ops.convert_to_numpy(loaded(TOKENS)), ops.convert_to_numpy(model(TOKENS))
    )


def load(path):
    """Load a `.keras` file or a preset."""
    if path.suffix == ".keras":
        return keras.saving.load_model(path, compile=False)
    return keras_hub.models.CausalLM.from_preset(str(path))


@pytest.mark.parametrize("name", ["model.keras", "preset"])
def test_a_tokenizer_with_other_special_tokens_comes_back(name, tmp_path):
    """As SmolLM2's: keras-hub looks for Llama's own in the saved vocabulary."""
    special = ["<pad>", "<s>", "</s>", "<tool>"]
    pieces = [*special, *"buter", "bu", "tt", "er", "butt", "butter"]
    tokenizer = keras_hub.models.Llama3Tokenizer(
        {piece: number for number, piece in enumerate(pieces)},
        ["b u", "t t", "e r", "bu tt", "butt er"],
        bos_token="<s>",
        eos_token="</s>",
        misc_special_tokens={"<tool>"},
    )
    keras.utils.set_random_seed(3)
    backbone = keras_hub.models.Llama3Backbone(
        **{**LLAMA, "vocabulary_size": len(pieces)}
    )
    preprocessor = keras_hub.models.Llama3CausalLMPreprocessor(tokenizer)
    model = keras_hub.models.Llama3CausalLM(backbone, preprocessor=preprocessor)
    with complete_config(model):
        (model.save if name.endswith("keras") else model.save_to_preset)(
            tmp_path / name
        )
    assert {"get_config", "save_assets"}.isdisjoint(vars(tokenizer))
    loaded = load(tmp_path / name)
    found = loaded.preprocessor.tokenizer
    assert (found.start_token_id, found.end_token_id) == (1, 2)
    text = "butter<tool>but"
    np.testing.assert_array_equal(found(text), tokenizer(text))
    np.testing.assert_array_equal(found(text), [13, 3, 9, 6])
    for one in (model, loaded):
        one.compile(sampler="greedy")
    found, expected = (one.generate("but", max_length=12) for one in (loaded, model))
    assert found.replace("<tool>", "") == expected


def test_other_models_are_left_alone():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    before = model.get_config()
    with complete_config(model):
        assert model.get_config() == before
    assert "get_config" not in vars(model)


def test_a_backbone_that_holds_another_is_its_own():
    class Detector(keras.Model):
        def __init__(self):
            super().__init__()
            self.backbone = keras.Sequential([keras.layers.Dense(2)])

        def default_lora_layer_names(self):
            return []

    detector = Detector()
    task = keras.Model()
    task.backbone = detector
    assert backbone_of(task) is backbone_of(detector) is detector
    assert backbone_of(detector.backbone) is detector.backbone


@since_hub((0, 27), "Gemma 4")
def test_a_kernel_that_its_holder_reads_is_adapted():
    """Gemma 4 multiplies by kernels of layers that it does not call."""
    model = keras_hub.models.Gemma4Backbone(
        **LLAMA, head_dim=4, image_size=16, sliding_window_size=4
    )
    report = kr.enable_randlora(model, rank=2, targets=["ffw_gating", "ffw_linear"])
    assert len(report.layers) == 4
    inputs = {**TOKENS, "position_ids": np.tile(np.arange(4, dtype="int32"), (2, 1))}
    before = ops.convert_to_numpy(model(inputs))
    randomize(model)
    tuned = ops.convert_to_numpy(model(inputs))
    assert np.abs(tuned - before).max() > 1e-3
    kr.merge_randlora(model)
    np.testing.assert_allclose(ops.convert_to_numpy(model(inputs)), tuned, atol=1e-5)
