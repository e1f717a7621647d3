"""SavedModels of models with more than variables."""

import keras
import numpy as np
import pytest

import keras_randlora as kr
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


def test_dropout_is_off(tmp_path):
    """Without `training=False` Keras turns it on in a model after `Resizing`."""
    import tensorflow as tf

    images = keras.Input((8, 8, 3))
    small = keras.layers.Resizing(4, 4)(images)
    dropout = keras.Sequential([keras.layers.Dropout(0.5)])
    model = keras.Model(images, dropout(small))
    write_saved_model(model, str(tmp_path), lambda stage: None)
    outputs = tf.saved_model.load(tmp_path).serve(tf.ones((2, 8, 8, 3)))
    np.testing.assert_allclose(outputs, np.ones((2, 4, 4, 3)), atol=1e-6)


@keras.saving.register_keras_serializable("tests")
class Deciding(keras.layers.Layer):
    """A layer that decides in Python by the values of its input."""

    def call(self, inputs):
        return inputs * 2 if keras.ops.max(inputs) > 2 else inputs

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


@pytest.mark.parametrize("format", ["tf_saved_model", "onnx", "litert", "openvino"])
def test_a_model_that_cannot_be_traced(tmp_path, format):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, Deciding()(keras.layers.Dense(3, name="d")(inputs)))
    kr.enable_randlora(model, rank=2, targets="d")
    path = tmp_path / f"m{kr.export.FORMATS[format].suffix or ''}"
    with pytest.raises(RuntimeError, match=r"dynamic sizes.*`tf.Tensor` as a Python"):
        kr.export_merged(model, path, format, verbose=False)
    assert list(tmp_path.iterdir()) == []
