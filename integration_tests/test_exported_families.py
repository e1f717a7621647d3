"""Every keras-hub family in the formats that TensorFlow writes, or a refusal by name.

Each file runs in its own runtime, in this process, with the outputs of the model.
"""

import families
import keras
import numpy as np
import pytest
from models import moved_adapter

import keras_randlora as kr
from keras_randlora.export.inputs import Inputs

FORMATS = ("tf_saved_model", "onnx", "openvino", "litert")
NO_TRACE = dict.fromkeys(FORMATS, "TensorFlow cannot trace the model with dynamic")
# {family: {format: what the refusal says}}
REFUSED = {
    "qwen3_5": NO_TRACE,
    "rwkv7": NO_TRACE,
    "gemma4": NO_TRACE,
    "d_fine": {
        "tf_saved_model": "Outputs for functions used as signatures",
        "onnx": "no counterpart of .*PartitionedCall",
        "openvino": "operations: .*TensorList",
        "litert": "Outputs for functions used as signatures",
    },
    "f_net": {"onnx": "FFT2D", "litert": "FFT2D"},
    "rqvae": {"onnx": "Bitcast", "openvino": "Bitcast", "litert": "BitwiseAnd"},
    "sam": {"onnx": "ONNX refuses the converted graph"},
    "sam3": {"onnx": "No Op registered for StridedSlice", "litert": "zeros_like"},
    "swin_transformer": {"openvino": "XlaDynamicUpdateSlice", "litert": "Roll"},
    "deberta_v3": {"litert": "Abs"},
    "gemma4_moe": {"litert": "Einsum"},
}
pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="TensorFlow writes them"
    ),
    pytest.mark.filterwarnings("ignore"),  # Keras, keras-hub and the converters
]


CASES = [(name, format) for name in families.names() for format in FORMATS]


@pytest.fixture(scope="module")
def adapted():
    """Return a function that gives the latest family again without building it."""
    latest = {}

    def build(name):
        if name not in latest:
            latest.clear()
            family = families.FAMILIES[name]
            model, inputs = family.build(), family.inputs()
            model(inputs, training=False)  # builds what is built by a call
            kr.enable_randlora(model, rank=2, targets="all-linear")
            kr.set_adapter(model, moved_adapter(model, 3))
            latest[name] = model, inputs, arrays(model(inputs, training=False))
        return latest[name]

    return build


def arrays(outputs):
    """Return outputs as a list of arrays."""
    return [np.asarray(one) for one in keras.tree.flatten(outputs)]


def named(model, inputs):
    """Return the arrays of a batch by our names of the inputs, in the model's types."""
    known = Inputs(model)
    arrays = keras.tree.flatten(inputs)
    by_name = isinstance(inputs, dict) and set(known.names) == set(inputs)
    values = inputs if by_name else dict(zip(known.names, arrays, strict=True))
    return {
        name: np.asarray(values[name], keras.backend.standardize_dtype(spec.dtype))
        for name, spec in zip(known.names, known.specs, strict=True)
    }


def run(path, format, feed):
    """Return the outputs of a file for named arrays."""
    if format == "tf_saved_model":
        import tensorflow as tf

        served = tf.saved_model.load(path).signatures["serving_default"]
        outputs = served(**{name: tf.constant(array) for name, array in feed.items()})
        return [outputs[name].numpy() for name in sorted(outputs, key=place)]
    if format == "onnx":
        import onnxruntime

        return onnxruntime.InferenceSession(path).run(None, feed)
    if format == "openvino":
        import openvino

        precise = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path, "CPU", precise)
        results = compiled(feed)
        return [results[output].copy() for output in compiled.outputs]
    from ai_edge_litert.interpreter import Interpreter

    outputs = Interpreter(str(path)).get_signature_runner()(**feed)
    return [outputs[name] for name in sorted(outputs, key=place)]


def place(name):
    """Return what sorts outputs as the model does: `output_2` before `output_10`."""
    number = name.removeprefix("output_")
    return (int(number), "") if number.isdigit() else (0, name)


@pytest.mark.parametrize("name, format", CASES)
def test_family(adapted, tmp_path, name, format):
    model, inputs, expected = adapted(name)
    path = tmp_path / f"m{kr.export.FORMATS[format].suffix or ''}"
    if refusal := REFUSED.get(name, {}).get(format):
        with pytest.raises((RuntimeError, ValueError), match=refusal):
            kr.export_merged(model, path, format, verbose=False)
        assert list(tmp_path.iterdir()) == []
        return
    kr.export_merged(model, path, format, verbose=False)
    actual = run(path, format, named(model, inputs))
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-4)
