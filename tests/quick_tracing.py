"""Keras traces the tests' training steps on TensorFlow once.

Half of the tests' time there is the tracing of steps that run once or twice.
"""

import functools

import keras


def build_optimizers_first():
    """Let Keras build an optimizer before it traces a step.

    It else builds it in the trace, and TensorFlow traces anew what creates variables.
    """
    keras.Model.make_train_function = _after_the_optimizer(
        keras.Model.make_train_function
    )


def _after_the_optimizer(make):
    @functools.wraps(make)
    def build_and_make(model, *args, **kwargs):
        optimizer = model.optimizer
        if optimizer is not None and model.built and not optimizer.built:
            optimizer.build(model.trainable_variables)
        return make(model, *args, **kwargs)

    return build_and_make
