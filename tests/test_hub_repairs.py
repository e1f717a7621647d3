"""Keras-hub models whose configuration is incomplete come back whole all the same."""

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops
from models import LLAMA

from keras_randlora.hub_repairs import complete_config

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
