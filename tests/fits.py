"""An adapted model in `fit`, for the tests of callbacks."""

from backend import BACKEND
from models import EXAMPLES, compile_model

import keras_randlora as kr

MLP = EXAMPLES["mlp"]


def adapted():
    model = MLP.build()
    kr.enable_randlora(model, rank=2, targets="all-linear")
    # Of two or three steps, which TensorFlow traces for longer than they take.
    compile_model(model, run_eagerly=BACKEND == "tensorflow")
    return model


def fit(model, *callbacks, epochs=3, batch_size=None, **options):
    x = MLP.inputs()
    return model.fit(
        x,
        MLP.labels(),
        batch_size=batch_size or len(x),
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **options,
    )
