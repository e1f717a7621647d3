"""Adapter files: what is in them, where they load, and every refusal."""

import hashlib
import json
import os
import pickle
import re
import stat
import subprocess
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from backend import assert_same_arrays
from keras import layers
from models import (
    EXAMPLES,
    compile_model,
    counting,
    structure_of,
    values_of,
)
from safetensors import safe_open
from safetensors.numpy import save

import keras_randlora as kr

OTHER_BACKEND = {"jax": "torch", "torch": "tensorflow", "tensorflow": "jax"}
WORKER = Path(__file__).parents[1] / "files_worker.py"

# Options that train every kind of variable.
OPTIONS = {
    "cnn": dict(targets="dense", train_bias="all", also_train=["batch_norm"]),
    "attention": dict(also_train="classifier", basis="sparse", dropout=0.1),
}


def randomize_positive(model, seed=3):
    """Set what is trained to random numbers above zero, as variances are."""
    rng = np.random.default_rng(seed)
    state = kr.get_adapter(model)
    kr.set_adapter(
        model, {path: rng.uniform(0.1, 0.3, a.shape) for path, a in state.items()}
    )


def adapted(name, **options):
    """Return an adapted example with random values."""
    model = EXAMPLES[name].build()
    defaults = dict(rank=2, targets=EXAMPLES[name].targets)
    kr.enable_randlora(model, **{**defaults, **OPTIONS.get(name, {}), **options})
    randomize_positive(model)
    return model


def test_a_file_of_nine_million_numbers_takes_little_more_than_they_do(tmp_path):
    """As many as PEFT's benchmark trains of a 3B model, in a file of 2,211 MB there."""
    inputs = outputs = keras.Input((576,))
    for _ in range(28):
        outputs = layers.Dense(576)(outputs)
    model = keras.Model(inputs, outputs)
    report = kr.enable_randlora(model, rank=1, targets="all-linear")
    kr.save_adapter(model, tmp_path / "x.safetensors")
    size = (tmp_path / "x.safetensors").stat().st_size
    assert report.trainable == 28 * 576 * 577 == 9_305_856
    assert 4 * report.trainable < size < 38e6


@pytest.fixture
def path(tmp_path):
    return tmp_path / "adapter.safetensors"


# Where a file loads


@pytest.mark.parametrize(
    "name", ["mlp", "sequential", "subclassed", "nested", "attention", "cnn", "llama3"]
)
def test_a_fresh_model_of_the_same_process(name, path):
    example = EXAMPLES[name]
    model = adapted(name)
    kr.save_adapter(model, path)
    fresh = example.build()
    report = kr.load_adapter(fresh, path)
    assert report == kr.summary(model)
    assert_same_arrays(kr.get_adapter(fresh), kr.get_adapter(model))
    assert np.array_equal(example.outputs(fresh), example.outputs(model))


def test_a_sequential_that_keras_has_named_anew(path):
    def build():
        return keras.Sequential([keras.Input((6,)), layers.Dense(4, name="dense")])

    first, second = build(), build()
    assert first.name != second.name
    kr.enable_randlora(first, rank=2, targets="dense")
    randomize_positive(first)
    kr.save_adapter(first, path)
    kr.load_adapter(second, path)
    assert_same_arrays(kr.get_adapter(second), kr.get_adapter(first))


def test_a_fresh_process_under_another_backend(tmp_path):
    expected = {}
    for name in ("attention", "cnn"):
        model = EXAMPLES[name].build()
        np.savez(tmp_path / f"{name}_base.npz", *model.get_weights())
        kr.enable_randlora(
            model, **{"rank": 2, "targets": EXAMPLES[name].targets, **OPTIONS[name]}
        )
        randomize_positive(model)
        kr.save_adapter(model, tmp_path / f"{name}.safetensors")
        expected[name] = kr.get_adapter(model), EXAMPLES[name].outputs(model)
    other = OTHER_BACKEND[keras.backend.backend()]
    root = str(WORKER.parents[1])
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(WORKER), str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": other, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for name, (adapter, outputs) in expected.items():
        with np.load(tmp_path / f"{name}_loaded.npz") as loaded:
            logits, *paths = loaded.files
            np.testing.assert_allclose(loaded[logits], outputs, atol=1e-4)
            assert_same_arrays({path: loaded[path] for path in paths}, adapter)


def test_an_adapted_model_takes_the_file_of_another_run(path):
    model, counter = counting()
    inputs = EXAMPLES["mlp"].inputs()
    kr.enable_randlora(model, rank=2, targets="all-linear")
    randomize_positive(model)
    kr.save_adapter(model, path)
    saved = kr.get_adapter(model), model.predict(inputs, verbose=0)
    randomize_positive(model, seed=4)
    again = counter.during(lambda: model.predict(inputs, verbose=0))
    report = kr.load_adapter(model, path)
    assert report == kr.summary(model)
    assert_same_arrays(kr.get_adapter(model), saved[0])
    assert counter.during(lambda: model.predict(inputs, verbose=0)) == again
    assert np.array_equal(model.predict(inputs, verbose=0), saved[1])


def test_how_the_layers_compute_may_differ(path):
    kr.save_adapter(adapted("mlp", dropout=0.1), path)
    model = adapted("mlp", compute="factored", basis_storage="regenerated")
    kr.load_adapter(model, path)
    with safe_open(path, framework="numpy") as file:
        assert_same_arrays(kr.get_adapter(model), tensors_of(file, model))


def tensors_of(file, model):
    """Return the tensors of a file in the order of the model's adapter."""
    return {path: file.get_tensor(path) for path in kr.get_adapter(model)}


def test_the_methods_of_models(path):
    model = adapted("mlp")
    model.save_randlora(path)
    fresh = EXAMPLES["mlp"].build()
    fresh.load_randlora(str(path))
    assert_same_arrays(kr.get_adapter(fresh), kr.get_adapter(model))


def test_layers_trained_in_bfloat16(path):
    def build():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((6,))
        x = layers.Dense(5, name="hidden", dtype="bfloat16")(inputs)
        outputs = layers.Dense(3, name="head", dtype="bfloat16")(x)
        return keras.Model(inputs, outputs)

    model = build()
    kr.enable_randlora(model, rank=2, targets="hidden", also_train="head")
    randomize_positive(model)
    kr.save_adapter(model, path)
    fresh = build()
    kr.load_adapter(fresh, path)
    assert_same_arrays(kr.get_adapter(fresh), kr.get_adapter(model))
    assert fresh.get_layer("hidden").randlora.lambda_.dtype == "float32"
    assert fresh.get_layer("head").kernel.dtype == "bfloat16"


# What is in a file


def test_the_content(path):
    model = adapted("cnn")
    kr.save_adapter(model, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    metadata = entries.pop("__metadata__")
    assert {name: (e["dtype"], e["shape"]) for name, e in entries.items()} == {
        "dense/lambda": ("F32", [2, 4]),
        "dense/gamma": ("F32", [4, 7]),
        "conv/bias": ("F32", [4]),
        "dense/bias": ("F32", [7]),
        "head/bias": ("F32", [3]),
        "batch_norm/gamma": ("F32", [4]),
        "batch_norm/beta": ("F32", [4]),
        "batch_norm/moving_mean": ("F32", [4]),
        "batch_norm/moving_variance": ("F32", [4]),
    }
    header = json.loads(metadata["keras-randlora-adapter"])
    config = header.pop("config")
    assert re.fullmatch("[0-9a-f]{64}", header.pop("sha256"))
    base = header.pop("base")
    assert (base["kind"], base["held"]) == ("Functional", "float32")
    assert {name: len(row) for name, row in base["kernels"].items()} == {"dense": 5}
    assert header == {
        "version": 1,
        "layers": {"dense": [36, 7]},
        "also_trained": ["batch_norm"],
    }
    assert config["rank"] == 2
    assert config["alpha"] == 40.0
    assert config["train_bias"] == "all"
    assert kr.RandLoRAConfig.from_json(json.dumps(config)).also_train == ("batch_norm",)
    assert list(metadata) == ["keras-randlora-adapter"]
    numbers = 2 * 4 + 4 * 7 + 4 + 7 + 3 + 4 * 4
    assert len(data) == 8 + length + 4 * numbers
    assert length < 2000


def test_the_same_adapter_gives_the_same_bytes(path, tmp_path):
    model = adapted("mlp")
    kr.save_adapter(model, path)
    kr.save_adapter(model, tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


# Saving


@pytest.mark.parametrize("name", ["adapter", "adapter.h5", "adapter.safetensors.tmp"])
def test_another_suffix_is_refused(tmp_path, name):
    message = f"name ends in '.safetensors'. Received: '{tmp_path / name}'."
    with pytest.raises(ValueError, match=re.escape(message)):
        kr.save_adapter(adapted("mlp"), tmp_path / name)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failing_save_leaves_the_former_file(path, monkeypatch, function):
    model = adapted("mlp")
    kr.save_adapter(model, path)
    before = path.read_bytes()
    randomize_positive(model, seed=4)

    def fail(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(OSError, match="no space left"):
            kr.save_adapter(model, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    kr.save_adapter(model, path)
    assert path.read_bytes() != before


def test_values_that_are_not_finite_are_not_saved(path):
    model = adapted("mlp")
    kr.save_adapter(model, path)
    before = path.read_bytes()
    gamma = model.get_layer("hidden_2").randlora.gamma
    gamma.assign(np.full(gamma.shape, np.nan))
    message = "The adapter's entry 'hidden_2/gamma' holds values that are not finite."
    with pytest.raises(ValueError, match=re.escape(message)):
        kr.save_adapter(model, path)
    assert path.read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o027, 0o640)])
def test_a_file_has_the_mode_that_the_user_wants(path, mask, mode):
    model = adapted("mlp")
    before = os.umask(mask)
    try:
        kr.save_adapter(model, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_missing_folders_are_made(tmp_path):
    path = tmp_path / "not" / "there" / "a.safetensors"
    kr.save_adapter(adapted("mlp"), path)
    assert kr.load_adapter(EXAMPLES["mlp"].build(), path).layers


# Damaged and foreign files. Each function gets the path of a good file.


def checksum(header, tensors):
    """Return the checksum that the format asks for."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def rewrite(path, change_header=None, change_tensors=None):
    """Write a file again with another header or other tensors, and its checksum."""
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["keras-randlora-adapter"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    del header["sha256"]
    if change_header:
        change_header(header)
    if change_tensors:
        change_tensors(tensors)
    header["sha256"] = checksum(header, tensors)
    metadata = {"keras-randlora-adapter": json.dumps(header)}
    path.write_bytes(save(tensors, metadata=metadata))


def cut(count):
    return lambda path: path.write_bytes(path.read_bytes()[:count])


def flip_last_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def set_header(**fields):
    return lambda path: rewrite(path, lambda header: header.update(fields))


def set_option(**options):
    return lambda path: rewrite(path, lambda h: h["config"].update(options))


def set_shape(layer, shape):
    return lambda path: rewrite(path, lambda h: h["layers"].update({layer: shape}))


def set_nan(path):
    def change(tensors):
        tensors["hidden_2/gamma"][0, 0] = np.nan

    rewrite(path, change_tensors=change)


def drop(name):
    return lambda path: rewrite(path, change_tensors=lambda t: t.pop(name))


def make_directory(path):
    path.unlink()
    path.mkdir()


UNREADABLE = "'{path}' is not a readable safetensors file ("
NO_ADAPTER = "'{path}' cannot be read as an adapter: "
BAD_FILES = {
    "empty": (cut(0), UNREADABLE),
    "cut in the header": (cut(100), UNREADABLE),
    "cut by one byte": (cut(-1), UNREADABLE),
    "random bytes": (
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(4096)),
        UNREADABLE,
    ),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), UNREADABLE),
    "pickle": (
        lambda path: path.write_bytes(pickle.dumps({"lambda": [0.0] * 99})),
        UNREADABLE,
    ),
    "another safetensors file": (
        lambda path: path.write_bytes(save({"weight": np.zeros(3)})),
        "'{path}' is a safetensors file, but not a keras-randlora adapter.",
    ),
    "one bit": (
        flip_last_bit,
        "'{path}' is damaged: its content does not match its checksum. Copy or save it "
        "again.",
    ),
    "a later version": (
        set_header(version=2),
        f"{NO_ADAPTER}it has format version 2; this version of keras_randlora reads "
        "version 1.",
    ),
    "no version": (
        lambda path: rewrite(path, lambda header: header.pop("version")),
        f"{NO_ADAPTER}'version'.",
    ),
    "an unknown option": (
        set_option(colour="red"),
        f"{NO_ADAPTER}Unknown RandLoRA options ['colour'].",
    ),
    "a bad option": (
        set_option(rank=0),
        f"{NO_ADAPTER}`rank` must be a positive integer. Received: ",
    ),
    "layers of another type": (
        set_header(layers=["hidden_1"]),
        f"{NO_ADAPTER}'list' object has no attribute 'items'.",
    ),
    "not a number": (
        set_nan,
        "'{path}' holds values that are not finite, first in 'hidden_2/gamma'.",
    ),
    "a missing tensor": (
        drop("hidden_2/gamma"),
        "The adapter has no entry 'hidden_2/gamma' of shape (3, 5).",
    ),
    "another kernel": (
        set_shape("hidden_1", [6, 11]),
        "'{path}' was made for another model: the kernel of layer 'hidden_1' has shape "
        "(6, 10) here and (6, 11) in the file.",
    ),
}


def plain_mlp():
    """Return a plain model whose optimizer holds state."""
    example = EXAMPLES["mlp"]
    model = example.build()
    compile_model(model)
    model.optimizer.build(model.trainable_variables)
    return model


def adapted_mlp():
    return adapted("mlp")


def assert_refused(model, path, message):
    """Assert that loading raises what begins so, and leaves the model as it was."""
    before = structure_of(model), values_of(model)
    with pytest.raises(ValueError, match=f"^{re.escape(message.format(path=path))}"):
        kr.load_adapter(model, path)
    assert (structure_of(model), values_of(model)) == before


@pytest.mark.parametrize("build", [plain_mlp, adapted_mlp])
@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_leave_the_model_as_it_was(name, build, path):
    spoil, message = BAD_FILES[name]
    kr.save_adapter(adapted("mlp"), path)
    spoil(path)
    assert_refused(build(), path, message)


@pytest.mark.parametrize(
    "build, message",
    [
        (
            plain_mlp,
            "'{path}' was made for another model: it adapts layer 'a_layer', which "
            "model 'mlp' does not have.",
        ),
        (
            adapted_mlp,
            "'{path}' does not fit: layer 'a_layer' is adapted in the file only.",
        ),
    ],
)
def test_a_file_with_an_unknown_layer_leaves_the_model_as_it_was(build, message, path):
    kr.save_adapter(adapted("mlp"), path)
    set_shape("a_layer", [5, 5])(path)
    assert_refused(build(), path, message)


@pytest.mark.parametrize("spoil", [Path.unlink, make_directory])
def test_a_missing_file(path, spoil):
    model = adapted("mlp")
    kr.save_adapter(model, path)
    spoil(path)
    with pytest.raises(FileNotFoundError, match=re.escape(f"no adapter file '{path}'")):
        kr.load_adapter(model, path)


# Good files of other models and other options


def other_width():
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(11, name="hidden_1"),
            layers.Dense(5, name="hidden_2"),
            layers.Dense(3, name="head"),
        ]
    )


def other_kinds():
    return keras.Sequential(
        [
            keras.Input((6, 1)),
            layers.DepthwiseConv1D(6, name="hidden_1"),
            layers.Dense(5, name="hidden_2"),
            layers.Dense(3, name="head"),
        ]
    )


OTHER_MODELS = {
    "no such layer": (
        EXAMPLES["attention"].build,
        "was made for another model: it adapts layer 'head', which model "
        "'attention_classifier' does not have.",
    ),
    "another width": (
        other_width,
        "the kernel of layer 'hidden_1' has shape (6, 11) here and (6, 10) in the "
        "file.",
    ),
    "a layer of another kind": (
        other_kinds,
        "was made for another model: it adapts layer 'hidden_1', which model",
    ),
    "one layer adapted only": (
        lambda: adapted("mlp", targets=["hidden_1", "hidden_2"]),
        "does not fit: layer 'head' is adapted in the file only. Call "
        "`disable_randlora(model)` first to load it with its own options.",
    ),
    "rank": (
        lambda: adapted("mlp", rank=3, alpha=40),
        "was trained with rank=2, the model is adapted with rank=3. Call "
        "`disable_randlora(model)` first to load it with its own options.",
    ),
    "alpha": (
        lambda: adapted("mlp", alpha=4),
        "was trained with alpha=40.0, the model is adapted with alpha=4.0.",
    ),
    "basis": (
        lambda: adapted("mlp", basis="binary"),
        "was trained with basis='uniform', the model is adapted with basis='binary'.",
    ),
    "seed": (
        lambda: adapted("mlp", seed=1),
        "was trained with seed=0, the model is adapted with seed=1.",
    ),
    "num_bases": (
        lambda: adapted("mlp", num_bases=1),
        "was trained with num_bases=None, the model is adapted with num_bases=1.",
    ),
    "biases": (
        lambda: adapted("mlp", train_bias="all"),
        "The adapter has no entry 'hidden_1/bias' of shape (10,).",
    ),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_other_models_and_options_are_refused(name, path):
    build, message = OTHER_MODELS[name]
    kr.save_adapter(adapted("mlp"), path)
    model = build()
    before = structure_of(model), values_of(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        kr.load_adapter(model, path)
    assert (structure_of(model), values_of(model)) == before


def test_another_sparsity_is_refused(path):
    kr.save_adapter(adapted("mlp", basis="ternary", sparsity=3), path)
    model = adapted("mlp", basis="ternary", sparsity=4)
    message = (
        "'{path}' was trained with sparsity=3.0, the model is adapted with "
        "sparsity=4.0."
    )
    assert_refused(model, path, message)


def with_keras_lora(layer):
    layer.enable_lora(2)


def constrained(layer):
    layer.kernel_constraint = keras.constraints.UnitNorm()


def quantized(layer):
    layer.quantize("float8")


@pytest.mark.parametrize(
    "change, message",
    [
        (with_keras_lora, "Layer 'hidden_2' has Keras's LoRA enabled."),
        (constrained, "Layer 'hidden_2' has a `kernel_constraint`, which"),
        (quantized, "Layer 'hidden_2' is quantized as 'float8', which"),
    ],
)
def test_a_layer_that_cannot_be_adapted_is_refused(change, message, path):
    kr.save_adapter(adapted("mlp"), path)
    model = EXAMPLES["mlp"].build()
    change(model.get_layer("hidden_2"))
    assert_refused(model, path, message)


def test_more_adapted_layers_than_the_file_has(path):
    kr.save_adapter(adapted("mlp", targets="hidden_1"), path)
    message = "layer 'head' is adapted in the model only."
    with pytest.raises(ValueError, match=message):
        kr.load_adapter(adapted("mlp"), path)


def test_a_trained_head_of_other_classes(path):
    def build(classes):
        inputs = keras.Input((6,))
        x = layers.Dense(5, name="hidden")(inputs)
        model = keras.Model(inputs, layers.Dense(classes, name="head")(x))
        compile_model(model)
        model.optimizer.build(model.trainable_variables)
        return model

    model = build(3)
    model.compiled = False
    kr.enable_randlora(model, rank=2, targets="hidden", also_train="head")
    kr.save_adapter(model, path)
    other = build(4)
    before = structure_of(other), values_of(other)
    message = "entry 'head/kernel' has shape (5, 3); the model expects (5, 4)."
    with pytest.raises(ValueError, match=re.escape(message)):
        kr.load_adapter(other, path)
    assert (structure_of(other), values_of(other)) == before


def test_the_model_that_is_adapted_is_the_one_to_load_into(path):
    inputs = keras.Input((8,))
    backbone = keras.Model(inputs, keras.layers.Dense(8, name="q")(inputs))
    task = keras.Sequential([backbone, keras.layers.Dense(2)])
    kr.enable_randlora(backbone, rank=2, targets="q")
    kr.save_adapter(backbone, path)
    # The whole is adapted as well, but trains a head that the file does not hold.
    with pytest.raises(ValueError, match="has no entry 'dense.*/kernel'"):
        kr.load_adapter(task, path)


# Metadata.


class Classifier(keras.Sequential):
    """A classifier that tells what a task of keras-hub tells."""

    num_classes = 3
    preprocessor = types.SimpleNamespace(sequence_length=16)


def classifier():
    model = Classifier([keras.Input((6,)), keras.layers.Dense(3, name="head")])
    kr.enable_randlora(model, rank=2, targets="head")
    return model


def test_metadata_travels_with_the_adapter(tmp_path):
    path = tmp_path / "a.safetensors"
    model = classifier()
    kr.save_adapter(model, path, metadata={"class_names": ("a", "b", "c"), "n": 1.5})
    own = {"num_classes": 3, "sequence_length": 16}
    assert kr.adapter_metadata(path) == {**own, "class_names": [*"abc"], "n": 1.5}
    kr.save_adapter(model, path)
    assert kr.adapter_metadata(path) == own
    plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, name="head")])
    kr.load_adapter(plain, path)
    kr.save_adapter(plain, path)
    assert kr.adapter_metadata(path) == {}


def test_a_checkpoint_writes_metadata(tmp_path):
    path = tmp_path / "best.safetensors"
    model = classifier()
    model.compile("sgd", "mse")
    names = {"class_names": ["a", "b", "c"]}
    keep = kr.RandLoRACheckpoint(path, "loss", save_best_only=True, metadata=names)
    data = np.ones((4, 6)), np.zeros((4, 3))
    model.fit(*data, verbose=0, callbacks=[keep])
    assert kr.adapter_metadata(path)["class_names"] == ["a", "b", "c"]
    wrong = kr.RandLoRACheckpoint(path, "loss", metadata={"class_names": ["a"]})
    with pytest.raises(ValueError, match="names 1 classes, and model .* has 3"):
        model.fit(*data, verbose=0, callbacks=[wrong])


def test_metadata_is_checked_before_anything_is_written(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(TypeError, match="`metadata` must hold what JSON can"):
        kr.save_adapter(classifier(), path, metadata={"labels": {1, 2}})
    with pytest.raises(TypeError, match="not JSON compliant"):
        kr.save_adapter(classifier(), path, metadata={"value": float("nan")})
    with pytest.raises(ValueError, match=r"Received: class_names=\['a', 'b'\]"):
        kr.save_adapter(classifier(), path, metadata={"class_names": ["a", "b"]})
    assert not path.exists()
