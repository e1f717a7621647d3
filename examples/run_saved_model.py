"""Run a language model's SavedModel with TensorFlow alone: no Keras, no adapter."""

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf


def main() -> None:
    """Read inputs from one `.npz` file and write the model's logits to another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("saved_model", type=Path)
    parser.add_argument("inputs", type=Path, help=".npz of token_ids, padding_mask")
    parser.add_argument("outputs", type=Path, help=".npz to write the logits to")
    arguments = parser.parse_args()

    model = tf.saved_model.load(str(arguments.saved_model))
    with np.load(arguments.inputs) as inputs:
        logits = model.serve({name: tf.constant(inputs[name]) for name in inputs})
    np.savez(arguments.outputs, logits=logits.numpy())


if __name__ == "__main__":
    main()
