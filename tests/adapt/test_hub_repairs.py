"""Keras-hub's particulars: incomplete configurations, backbones, kernels it reads."""

import re

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops
from models import LLAMA

import keras_randlora as kr
from keras_randlora.adapt.hub_repairs import backbone_of, complete_config
from keras_randlora.adapt.targets import select_addresses

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


def test_a_kernel_that_its_holder_reads_is_refused_by_name():
    model = keras_hub.models.Gemma4Backbone(
        **LLAMA, head_dim=4, image_size=16, sliding_window_size=4
    )
    message = (
        "Layer 'decoder_block_0/ffw_gating' cannot be adapted: Gemma4TextDecoderBlock "
        "of keras-hub multiplies by its kernel without calling it, so that an update "
        "would take no part. Leave such layers out: "
        "exclude=['ffw_gating', 'ffw_gating_2', 'ffw_linear']."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        kr.enable_randlora(model, rank=2, targets="all-linear")
    with pytest.raises(ValueError, match="ffw_linear' cannot be adapted"):
        select_addresses(model, ["decoder_block_1/ffw_linear"], [])
    exclude = ["ffw_gating", "ffw_gating_2", "ffw_linear"]
    report = kr.enable_randlora(model, rank=2, targets="all-linear", exclude=exclude)
    assert {layer.path.split("/")[1] for layer in report.layers} == {"attention"}
