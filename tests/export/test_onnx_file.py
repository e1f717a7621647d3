"""ONNX files, made by this backend without another process."""

import artefacts
import keras
import numpy as np
import onnx
import pytest
from models import EXAMPLES
from onnx import numpy_helper

import keras_randlora as kr
from keras_randlora.export import artefacts as export
from keras_randlora.export import onnx_file, second_process

BACKEND = keras.backend.backend()
NAMES = ["llama3", "gemma3", "bert", "vit", "cnn", "attention", "subclassed", "mlp"]

# What tf2onnx's use of NumPy and ONNX warns of.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("quick_processes"),
]
written_here = pytest.mark.skipif(BACKEND == "jax", reason="JAX has no tracer")


@written_here
def test_runs_at_other_sizes(tmp_path, capsys):
    expected, requests = {}, []
    for name in NAMES:
        model = artefacts.adapted(name)
        before = artefacts.unchanging(model)
        path = tmp_path / f"{name}.onnx"
        kr.export_merged(model, path, "onnx")
        assert artefacts.unchanging(model) == before
        requests.append((name, "onnx", path))
        expected[name] = [artefacts.outputs(model, b) for b in artefacts.batches(name)]
    assert "second process" not in capsys.readouterr().out
    results = artefacts.run(tmp_path, requests)
    for name, (_, outputs) in zip(NAMES, results, strict=True):
        for actual, wanted in zip(outputs, expected[name], strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-5)


@written_here
def test_what_the_file_holds(tmp_path):
    model = EXAMPLES["llama3"].build()
    onnx_file.write_onnx(model, str(tmp_path / "m.onnx"), lambda stage: None)
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert {value.name for value in graph.input} == {"token_ids", "padding_mask"}
    for value in graph.input:
        assert not any(axis.dim_value for axis in value.type.tensor_type.shape.dim)
    assert [value.name for value in graph.output] == ["output_0"]
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for weight in model.weights:
        np.testing.assert_array_equal(held[weight.path], weight.numpy())


@pytest.mark.any_backend
@pytest.mark.parametrize("sizes", [[], [1], [5, 300], [40, 70, 3]])
def test_weights_are_appended_as_onnx_would_write_them(tmp_path, sizes):
    rng = np.random.default_rng(0)
    weights = {
        f"w{i}": rng.standard_normal((size, 3)).astype(["float32", "float16"][i % 2])
        for i, size in enumerate(sizes)
    }
    first = numpy_helper.from_array(np.arange(3), "first")
    graph = onnx.helper.make_graph([], "g", [], [], initializer=[first])
    model = onnx.helper.make_model(graph, producer_name="tester")
    onnx_file.write_with_weights(model, weights, str(tmp_path / "m.onnx"))
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    for name, array in weights.items():
        expected.graph.initializer.append(numpy_helper.from_array(array, name))
    assert onnx.load(tmp_path / "m.onnx") == expected


@written_here
def test_an_output_is_named_apart_from_an_input(tmp_path):
    masks = keras.Input((6,), name="masks")
    outputs = {"masks": keras.layers.Dense(3)(masks), "scores": masks}
    model = keras.Model({"masks": masks}, outputs)
    onnx_file.write_onnx(model, str(tmp_path / "m.onnx"), lambda stage: None)
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [value.name for value in graph.input] == ["masks"]
    assert [value.name for value in graph.output] == ["output_masks", "scores"]


def test_a_graph_that_no_runtime_would_load_is_refused():
    node = onnx.helper.make_node("Relu", ["no such value"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [], [])
    with pytest.raises(RuntimeError, match="ONNX refuses the converted graph.*such"):
        onnx_file._check(onnx.helper.make_model(graph))


@keras.saving.register_keras_serializable("tests")
class Sized(keras.layers.Layer):
    """A layer that makes the batch's size a number of Python."""

    def call(self, inputs):
        return inputs * float(inputs.shape[0] or 1)


@pytest.mark.skipif(BACKEND != "torch", reason="of torch's tracer")
def test_a_size_that_became_part_of_the_graph_is_noticed(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, Sized()(keras.layers.Dense(3)(inputs)))
    with pytest.raises(onnx_file.UntraceableError, match="sizes of its example"):
        onnx_file.write_onnx(model, str(tmp_path / "m.onnx"), lambda stage: None)


@pytest.mark.skipif(BACKEND != "torch", reason="of torch's tracer")
def test_tensorflow_writes_what_torch_cannot_trace(tmp_path, monkeypatch, capsys):
    model = artefacts.adapted("mlp")

    def fail(model, path, say):
        raise onnx_file.UntraceableError("torch cannot trace it (no such operation)")

    broken = export.FORMATS["onnx"]._replace(write=fail)
    monkeypatch.setitem(export.FORMATS, "onnx", broken)
    monkeypatch.setattr(second_process, "_run", lambda *_: (1, "asked"))
    with pytest.raises(RuntimeError, match="Keras on tensorflow.*\nasked"):
        kr.export_merged(model, tmp_path / "m.onnx", "onnx")
    assert "cannot trace it (no such operation)" in capsys.readouterr().out
    only_torch = broken._replace(backends={"torch": ("torch",)})
    monkeypatch.setitem(export.FORMATS, "onnx", only_torch)
    with pytest.raises(onnx_file.UntraceableError):
        kr.export_merged(model, tmp_path / "m.onnx", "onnx")
