"""SavedModels of models with more than variables."""

import keras
import numpy as np
import pytest

from keras_randlora.export.saved_model import write_saved_model

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow writes them"
)


def test_a_lookup_table(tmp_path):
    import tensorflow as tf

    words = keras.Input((3,), dtype="string", name="words")
    ids = keras.layers.StringLookup(vocabulary=["good", "bad"])(words)
    table = keras.layers.Embedding(3, 4)(ids)
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(table))
    model = keras.Model(words, outputs)
    stages = []
    write_saved_model(model, str(tmp_path), stages.append)
    assert stages == ["tracing the model", "writing the SavedModel"]
    loaded = tf.saved_model.load(tmp_path)
    assert len(loaded.variables) == len(model.weights) == 3
    texts = tf.constant([["good", "bad", "other"], ["bad", "bad", "good"]])
    np.testing.assert_allclose(loaded.serve(texts), model(texts), atol=1e-6)
