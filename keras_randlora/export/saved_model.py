"""TensorFlow SavedModel; it is written with TensorFlow as the backend, see `export`."""

from __future__ import annotations

from typing import Any

import keras

from keras_randlora.export.inputs import Inputs
from keras_randlora.export.stages import Say
from keras_randlora.export.tensorflow_graph import concrete


def write_saved_model(model: keras.Model, path: str, say: Say) -> None:
    """Write the model with one function, `serve`, the default signature.

    Keras would trace the model five times: as a function of its own, and as a layer
    among its layers.

    Raises:
        RuntimeError: TensorFlow cannot trace the model.
    """
    import tensorflow as tf

    say("tracing the model")
    inputs = Inputs(model)
    specs = [tf.TensorSpec(s.shape, s.dtype, s.name) for s in inputs.specs]
    serve = tf.function(
        lambda *arguments: model(*arguments, training=False),
        input_signature=inputs.nested(specs),
        autograph=False,
    )
    concrete(serve)
    say("writing the SavedModel")
    try:
        _archive(model, serve).write_out(path, verbose=False)
    except AssertionError:  # TensorFlow's, of a lookup table that is no variable
        _archive(model, serve, tracked=True).write_out(path, verbose=False)


def _archive(
    model: keras.Model, serve: Any, tracked: bool = False
) -> keras.export.ExportArchive:
    """Return an archive with the function, each variable once, and all layers or none.

    Keras lists its own variables there and TensorFlow's in another list, so each of
    them would be written twice.
    """
    archive = keras.export.ExportArchive()
    if tracked:
        archive.track(model)
    archive.add_endpoint("serve", serve)
    for name in ("variables", "trainable_variables", "non_trainable_variables"):
        collection = [variable.value for variable in getattr(model, name)]
        archive.add_variable_collection(name, collection)
    return archive
