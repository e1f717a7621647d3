"""TensorFlow SavedModel; it is written with TensorFlow as the backend, see `export`."""

from __future__ import annotations

import keras

from keras_randlora.export.stages import Say
from keras_randlora.tools import keras_internals


def write_saved_model(model: keras.Model, path: str, say: Say) -> None:
    """Write the model with one function, `serve`, the default signature."""
    say("tracing the model")
    archive = keras.export.ExportArchive()
    signature = keras_internals.input_signature(model)
    archive.track_and_add_endpoint("serve", model, signature)
    # Keras lists its own variables there and TensorFlow's in another list, so each of
    # them would be written twice.
    for name in ("variables", "trainable_variables", "non_trainable_variables"):
        collection = [variable.value for variable in getattr(model, name)]
        archive.add_variable_collection(name, collection)
    say("writing the SavedModel")
    archive.write_out(path, verbose=False)
