#!/usr/bin/env bash
# Guess: OpenVINO converts tf.matmul(x, y, output_type=tf.int32) of two int8 matrices to a product with an int32
#   result, or refuses it.
# Really: the converted model says int32, and every entry beyond 127 is 127, without a warning. So a Dense that Keras
#   has quantized to int8, whose graph is such a product, computes something else in OpenVINO. With operands cast to
#   int32 or float32 first the result is right.
# Seen on 2026-12-01: openvino 2026.4.1, tensorflow-cpu 2.21.0, numpy 2.4.6
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile openvino==2026.4.1 tensorflow-cpu==2.21.0 numpy==2.4.6
cd "$folder"
export TF_CPP_MIN_LOG_LEVEL=3 CI=true
"$folder/env/bin/python" - 2>/dev/null <<'PROGRAM'
import numpy as np
import openvino as ov
import tensorflow as tf

x = np.full((1, 4), 100, "int8")
y = np.full((4, 2), 100, "int8")
specs = [tf.TensorSpec(x.shape, tf.int8), tf.TensorSpec(y.shape, tf.int8)]


def converted(product):
    """Return the type of the converted model's result, and what it computes."""
    function = tf.function(product, input_signature=specs).get_concrete_function()
    model = ov.convert_model(function)
    result = ov.Core().compile_model(model, "CPU")([x, y])[0]
    return model.outputs[0].get_element_type().to_string(), result.ravel().tolist()


product = lambda x, y: tf.matmul(x, y, output_type=tf.int32)
print("TensorFlow:", product(x, y).numpy().ravel().tolist())
kind, found = converted(product)
_, cast = converted(lambda x, y: tf.matmul(tf.cast(x, tf.int32), tf.cast(y, tf.int32)))
print(f"OpenVINO: {kind}, {found}")
print("OpenVINO, operands cast to int32:", cast)
right = [40_000, 40_000]
raise SystemExit(0 if found != right and cast == right else "the result is right now")
PROGRAM
