"""OpenVINO files: names, values and types, with no copy of a weight in memory."""

import keras
import ml_dtypes
import numpy as np
import pytest
from models import moved_adapter

import keras_randlora as kr

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow writes them"
)
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


@keras.saving.register_keras_serializable("tests")
class Shifted(keras.layers.Layer):
    """A layer with a constant that is no weight."""

    def __init__(self, **options):
        super().__init__(**options)
        self._shift = keras.ops.convert_to_tensor(np.arange(8, dtype="float32"))

    def call(self, inputs):
        return inputs + keras.ops.cast(self._shift, inputs.dtype)


def of_two_inputs(dtype):
    """Return a model with an output given twice, and one that is an input."""
    wide = keras.Input((6,), name="wide")
    text = keras.Input((None, 4), name="text")
    hidden = Shifted(dtype=dtype)(keras.layers.Dense(8, name="d", dtype=dtype)(wide))
    noisy = keras.layers.Dropout(0.5, dtype=dtype)(text)
    outputs = {
        "again": hidden,
        "first": hidden,
        "given": wide,
        "of_text": keras.layers.Dense(5, name="e", dtype=dtype)(noisy),
    }
    return keras.Model({"wide": wide, "text": text}, outputs)


def run(path, inputs):
    """Return the outputs of a file by their names."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", FLOAT32)
    results = {}
    for name, array in compiled(inputs).to_dict().items():
        for one in name.get_names():
            results[one] = array.copy()  # it is memory of the compiled model
    return results


@pytest.mark.parametrize(
    "dtype, tolerance",
    [
        ("float32", 1e-5),
        ("float16", 2e-2),
        ("bfloat16", 2e-1),
        ("mixed_bfloat16", 2e-1),
    ],
)
def test_names_and_values(tmp_path, seed, dtype, tolerance):
    model = of_two_inputs(dtype)
    kr.enable_randlora(model, rank=2, targets="all-linear")
    kr.set_adapter(model, moved_adapter(model, seed))
    path = tmp_path / "m.xml"
    kr.export_merged(model, path, "openvino", verbose=False)
    rng = np.random.default_rng(seed)
    for batch, length in ((3, 5), (2, 7)):
        inputs = {
            "wide": rng.standard_normal((batch, 6)).astype("float32"),
            "text": rng.standard_normal((batch, length, 4)).astype("float32"),
        }
        results = run(path, inputs)
        for name, expected in model(inputs, training=False).items():
            actual = results[name]
            if dtype.endswith("bfloat16") and name != "given":
                actual = actual.view(ml_dtypes.bfloat16)
            np.testing.assert_allclose(
                np.asarray(actual, "float32"),
                keras.ops.convert_to_numpy(keras.ops.cast(expected, "float32")),
                atol=tolerance,
            )


def test_a_constant_shares_the_memory_of_the_weight():
    from keras_randlora.export import openvino_file

    array = np.ones((2, 3), "float32")
    constant = openvino_file._constant(array)
    array[0, 1] = 5
    np.testing.assert_array_equal(constant.get_data(), array)


def test_a_missing_operation_is_named(tmp_path, monkeypatch):
    import openvino

    def fail(file):
        raise RuntimeError(
            "Summary:\n-- No conversion rule found for operations: Sort\n"
        )

    monkeypatch.setattr(openvino, "convert_model", fail)
    model = of_two_inputs("float32")
    kr.enable_randlora(model, rank=2, targets="d")
    with pytest.raises(RuntimeError, match=r"this model: No conversion.*: Sort$"):
        kr.export_merged(model, tmp_path / "m.xml", "openvino", verbose=False)
    assert list(tmp_path.iterdir()) == []
