"""The comparison on pictures: its data, its runs, and DINOv2's weights in keras-hub."""

import gzip
import json

import keras
import numpy as np
import pytest

from examples import runs
from examples.command_line import UserError
from examples.vision import __main__ as cli
from examples.vision import comparison, data, dinov2, model, train

pytestmark = pytest.mark.any_backend


@pytest.fixture
def digits_file(tmp_path):
    """Give a file of 60 digits: a 0 is bright above, a 1 is bright below."""
    rows = []
    for label in [0, 1] * 30:
        digit = np.zeros((8, 8), int)
        digit[4 * label :][:4] = 16
        rows.append([*digit.ravel(), label])
    path = tmp_path / "digits.csv.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in rows)
    return path


def pictures(count, side=8):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, side, side, 3)).astype("uint8")
    return data.Images(pixels, np.arange(count, dtype="int32") % 10)


# Data.


def test_digits_are_grey_pictures(digits_file):
    digits = data.digits(digits_file)
    assert digits.pixels.shape == (60, 8, 8, 3) and digits.pixels.dtype == np.uint8
    np.testing.assert_array_equal(digits.labels, [0, 1] * 30)
    np.testing.assert_array_equal(digits.pixels[1, 2:5, 7, 2], [0, 0, 255])


def test_missing_digits_are_an_error_of_one_line(tmp_path, capsys):
    missing = tmp_path / "none.csv.gz"
    arguments = ["pretrain", "--digits", str(missing)]
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert "none.csv.gz" in message and message.count("\n") == 1


def test_the_other_camera_turns_and_inverts():
    digits = pictures(3)
    other = data.disturbed(digits)
    for y, x in np.ndindex(8, 8):
        expected = 255 - digits.pixels[:, x, 7 - y]
        np.testing.assert_array_equal(other.pixels[:, y, x], expected)
    np.testing.assert_array_equal(other.labels, digits.labels)


def test_parts_share_no_picture_and_leave_none_out():
    digits = pictures(100)
    digits.labels[:] = np.arange(100)
    parts = data.split(digits)
    assert [len(part.labels) for part in parts] == [55, 15, 30]
    assert sorted(np.concatenate([part.labels for part in parts])) == list(range(100))
    with pytest.raises(UserError, match="Received: 2"):
        data.split(pictures(2))


def test_shifted_pictures_are_moved_by_a_pixel_at_most():
    digits = pictures(50)
    moved = data.shifted(digits, seed=1).pixels[:, 1:-1, 1:-1]
    offsets = [(y, x) for y in range(3) for x in range(3)]
    found = np.array(
        [
            (moved == digits.pixels[:, y : y + 6, x : x + 6]).all(axis=(1, 2, 3))
            for y, x in offsets
        ]
    )
    np.testing.assert_array_equal(found.sum(axis=0), np.ones(50))
    assert found.any(axis=1).all()


def test_a_folder_of_pictures(tmp_path):
    for index, name in enumerate(["cat", "dog"]):
        (tmp_path / name).mkdir()
        for shade in (10, 20):
            picture = np.full((12, 20, 3), 100 * index + shade, "uint8")
            keras.utils.save_img(tmp_path / name / f"{shade}.png", picture, scale=False)
    found, names = data.from_folder(tmp_path, (6, 6))
    assert names == ("cat", "dog")
    assert found.pixels.shape == (4, 6, 6, 3)
    np.testing.assert_array_equal(found.pixels[:, 3, 3, 0], [10, 20, 110, 120])
    np.testing.assert_array_equal(found.labels, [0, 0, 1, 1])
    with pytest.raises(UserError, match="No images found in directory .*cat"):
        data.from_folder(tmp_path / "cat", (6, 6))


# Rates and tables.

COMMON = comparison.Run("", "", 0, 0.0, 5, 4, "preset", "digits", "jax")


def record(part, method, rate, loss, seed=0, **other):
    plan = {**vars(COMMON), "part": part, "method": method, "seed": seed}
    measured = {"accuracy": 0.5, "loss": loss, "trained": 7, "share": 0.1, "seconds": 2}
    return {**plan, "learning_rate": rate, **measured, **other}


def test_every_method_tries_the_same_rates_with_a_seed_of_its_own():
    plans = comparison.tuning(COMMON, ["full", "lora-4"], [0.1, 0.2])
    tried = [(plan.method, plan.learning_rate) for plan in plans]
    assert tried == [("full", 0.1), ("full", 0.2), ("lora-4", 0.1), ("lora-4", 0.2)]
    assert {(p.part, p.steps, p.batch_size) for p in plans} == {("validation", 5, 4)}
    records = [record("validation", p.method, p.learning_rate, 1.0) for p in plans]
    final = comparison.judged(COMMON, ["full", "lora-4"], 3, records)
    assert {plan.part for plan in final} == {"test"}
    assert sorted({plan.seed for plan in final}) == [0, 1, 2]
    assert not {p.seed for p in final} & {p.seed for p in plans}


def test_the_rate_with_the_lowest_validation_loss_is_taken():
    records = [
        record("validation", "full", 0.1, 0.4),
        record("validation", "full", 0.2, 0.3),
        record("validation", "full", 0.3, 0.2, steps=99),
        record("validation", "head", 0.4, 0.1),
        record("test", "full", 0.5, 0.0),
    ]
    assert comparison.chosen_rate(COMMON, "full", records) == 0.2
    with pytest.raises(UserError, match="No learning rate is chosen for 'lora-4'"):
        comparison.chosen_rate(COMMON, "lora-4", records)


def test_tables_keep_settings_apart():
    records = [
        record("validation", "full", 0.1, 0.4),
        record("validation", "full", 0.2, 0.3),
        record("test", "full", 0.2, 0.25, seed=0, accuracy=0.9),
        record("test", "full", 0.2, 0.25, seed=1, accuracy=0.8),
        record("test", "full", 0.2, 0.25, seed=1, accuracy=0.1, steps=99),
    ]
    text = comparison.tables(records)
    assert "digits, preset, 5 steps of 4, jax" in text and "99 steps" in text
    assert "85.0 ± 7.1" in text
    tried = text.split("by learning rate:")[1].splitlines()
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in tried[2:5]]
    assert cells[0] == ["method", "runs", "0.1", "0.2"]
    assert cells[2] == ["`full`", "2", "0.400", "0.300"]


# Runs.


@pytest.fixture
def preset(tmp_path):
    """Give the folder of a vision transformer of one block with ten classes."""
    classifier, converter = model.small_vit(side=8, classes=10, blocks=1)
    model.attach(converter, classifier)
    classifier.save_to_preset(str(tmp_path / "preset"))
    return tmp_path / "preset"


def test_a_preset_keeps_its_head_for_as_many_classes(preset):
    kernels = [
        keras.ops.convert_to_numpy(
            model.load(str(preset), classes)[0].layers[-1].kernel
        )
        for classes in (10, 10, 3)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert kernels[2].shape == (96, 3)


def test_logits_in_batches_of_one_size(preset):
    classifier, converter = model.load(str(preset), 10)
    shown = pictures(5).pixels
    inputs = model.converted(converter, shown)
    np.testing.assert_allclose(inputs, shown / 127.5 - 1, atol=1e-5)
    expected = classifier.predict_on_batch(inputs)
    found = model.logits(classifier, converter, shown, batch_size=4)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_is_no_preset_is_said_in_one_line(tmp_path, digits_file, capsys):
    arguments = ["compare", "--folder", str(tmp_path / "none")]
    arguments += ["--digits", str(digits_file), "--out", str(tmp_path / "runs.jsonl")]
    assert cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert "`pretrain`" in message and message.count("\n") == 1


def test_rates_rise_for_a_tenth_and_fall_to_nothing():
    rates = [train.rate_at(step, 40) for step in range(40)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose([rates[22], rates[-1]], [0.5, 0], atol=0.01)
    assert sorted(rates[4:], reverse=True) == rates[4:]


@pytest.mark.every_backend
def test_from_a_preset_to_the_exported_model(
    tmp_path, digits_file, preset, monkeypatch, capsys
):
    monkeypatch.setenv("KERAS_BACKEND", "restored after the test")
    common = ["--backend", keras.backend.backend(), "--digits", str(digits_file)]
    common += ["--steps", "2", "--batch-size", "8", "--folder", str(preset)]
    out = tmp_path / "runs.jsonl"
    common += ["--out", str(out)]
    same = dict(steps=2, batch_size=8, preset=str(preset))
    same |= dict(backend=keras.backend.backend(), seed=comparison.TUNING_SEED)
    for rate, loss in ((0.01, 0.1), (0.02, 0.2)):
        tried = record("validation", "randlora-16", rate, loss, **same)
        runs.append(tried, out)
    compare = ["compare", *common, "--methods", "randlora-16", "--seeds", "1"]
    assert cli.main([*compare, "--rates", "0.01", "0.02"]) == 0
    *tried, final = runs.read(out)
    assert len(tried) == 2
    assert (final["part"], final["seed"], final["learning_rate"]) == ("test", 0, 0.01)
    assert 10 * 97 < final["trained"] and final["share"] < 0.5
    capsys.readouterr()
    output = tmp_path / "output"
    predict = ["predict", *common, "--method", "randlora-16", "--output", str(output)]
    assert cli.main(predict) == 0
    said = capsys.readouterr().out
    assert float(said.split("adapted model: ")[1].split()[0]) < 1e-4
    assert f"{final['accuracy']:.1%}" in said.split("after fine-tuning: ")[1]
    assert json.loads((output / "merged" / "task.json").read_text())
    assert (output / "predictions.png").stat().st_size > 10_000


def test_only_what_merges_is_exported(tmp_path, capsys):
    assert cli.main(["predict", "--method", "lora-4"]) == 2
    assert "Received: 'lora-4'" in capsys.readouterr().err


def test_pretraining_learns_and_writes_a_preset(
    tmp_path, digits_file, monkeypatch, capsys
):
    monkeypatch.setenv("KERAS_BACKEND", "restored after the test")
    whole = model.small_vit
    monkeypatch.setattr(model, "small_vit", lambda **sizes: whole(blocks=1, **sizes))
    folder = tmp_path / "preset"
    arguments = ["pretrain", "--backend", keras.backend.backend()]
    arguments += ["--digits", str(digits_file), "--folder", str(folder)]
    assert cli.main([*arguments, "--pretrain-steps", "40"]) == 0
    accuracy = capsys.readouterr().out.split("Validation accuracy on the digits: ")[1]
    assert float(accuracy.split("%")[0]) > 80
    model.load(str(folder), 10)


# DINOv2.

WIDTH, HEADS = 8, 2


def dinov2_arrays(rng):
    """Return what `dinov2.read` returns, of one block on a grid of 2 × 2."""

    def draw(*shape):
        return rng.normal(0, 0.5, shape).astype("float32")

    block = "encoder.layer.0"
    arrays = {
        "embeddings.cls_token": draw(1, 1, WIDTH),
        "embeddings.patch_embeddings.projection.weight": draw(WIDTH, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": draw(WIDTH),
        "cls_pos": draw(1, WIDTH),
        "patch_pos": draw(4, WIDTH),
    }
    for norm in (f"{block}.norm1", f"{block}.norm2", "layernorm"):
        arrays |= {f"{norm}.weight": draw(WIDTH), f"{norm}.bias": draw(WIDTH)}
    shapes = {"mlp.fc1": (WIDTH, 4 * WIDTH), "mlp.fc2": (4 * WIDTH, WIDTH)}
    for name in ("attention.query", "attention.key", "attention.value", "output.dense"):
        shapes[f"attention.{name}"] = (WIDTH, WIDTH)
    for name, shape in shapes.items():
        arrays[f"{block}.{name}.kernel"] = draw(*shape)
        arrays[f"{block}.{name}.bias"] = draw(shape[1])
    for index in (1, 2):
        arrays[f"{block}.layer_scale{index}.lambda1"] = draw(WIDTH)
    return arrays


def dinov2_features(arrays, image):
    """Return what DINOv2 makes of an image `(28, 28, 3)`, written with loops."""
    from math import erf, sqrt

    def norm(x, name):
        x = (x - x.mean()) / sqrt(x.var() + 1e-6)
        return x * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]

    def dense(x, name):
        path = f"encoder.layer.0.{name}"
        return x @ arrays[f"{path}.kernel"] + arrays[f"{path}.bias"]

    kernel = arrays["embeddings.patch_embeddings.projection.weight"]
    bias = arrays["embeddings.patch_embeddings.projection.bias"]
    tokens = [arrays["embeddings.cls_token"][0, 0] + arrays["cls_pos"][0]]
    for place in range(4):
        y, x = 14 * (place // 2), 14 * (place % 2)
        patch = image[y : y + 14, x : x + 14].transpose(2, 0, 1)
        tokens.append(
            (kernel * patch).sum((1, 2, 3)) + bias + arrays["patch_pos"][place]
        )
    block, size = "encoder.layer.0", WIDTH // HEADS
    normed = [norm(token, f"{block}.norm1") for token in tokens]
    query, key, value = (
        [dense(x, f"attention.attention.{name}") for x in normed]
        for name in ("query", "key", "value")
    )
    scale = [arrays[f"{block}.layer_scale{i}.lambda1"] for i in (1, 2)]
    outputs = []
    for token, q in zip(tokens, query, strict=True):
        mixed = np.zeros(WIDTH)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            weights = np.exp([q[part] @ k[part] / sqrt(size) for k in key])
            weights /= weights.sum()
            mixed[part] = sum(w * v[part] for w, v in zip(weights, value, strict=True))
        token = token + scale[0] * dense(mixed, "attention.output.dense")
        hidden = dense(norm(token, f"{block}.norm2"), "mlp.fc1")
        hidden = np.array([0.5 * h * (1 + erf(h / sqrt(2))) for h in hidden])
        token = token + scale[1] * dense(hidden, "mlp.fc2")
        outputs.append(norm(token, "layernorm"))
    return np.array(outputs)


def test_dinov2_computes_the_same_in_keras_hub():
    import keras_hub

    rng = np.random.default_rng(0)
    arrays, image = dinov2_arrays(rng), rng.normal(size=(28, 28, 3)).astype("float32")
    backbone = keras_hub.models.ViTBackbone((28, 28, 3), 14, 1, HEADS, WIDTH, 4 * WIDTH)
    dinov2.set_weights(backbone, arrays)
    found = backbone.predict_on_batch(image[None])[0]
    np.testing.assert_allclose(found, dinov2_features(arrays, image), atol=1e-4)


def test_dinov2s_arrays_get_the_names_of_their_operations(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    monkeypatch.setattr(dinov2, "WIDTH", WIDTH)
    rng = np.random.default_rng(0)
    stored = {
        "backbone.layernorm.weight": rng.normal(size=WIDTH),
        "backbone.embeddings.cls_token": rng.normal(size=(1, 1, WIDTH)),
        "onnx::1": rng.normal(size=(WIDTH, WIDTH)),
        "onnx::2": rng.normal(size=(1, 1, WIDTH)),
        "onnx::3": rng.normal(size=(1, 9, WIDTH)),
        "decoder.bias": rng.normal(size=3),
    }
    node = onnx.helper.make_node(
        "MatMul", ["x", "onnx::1"], ["y"], "/backbone/encoder/layer.0/mlp/fc1/MatMul"
    )
    graph = onnx.helper.make_graph(
        [node],
        "dinov2",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, [1, WIDTH])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, [1, WIDTH])],
        [onnx.numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    arrays = dinov2.read(tmp_path / "model.onnx")
    expected = {
        "layernorm.weight": stored["backbone.layernorm.weight"],
        "embeddings.cls_token": stored["backbone.embeddings.cls_token"],
        "encoder.layer.0.mlp.fc1.kernel": stored["onnx::1"],
        "cls_pos": stored["onnx::2"][0],
        "patch_pos": stored["onnx::3"][0],
    }
    assert sorted(arrays) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("side", [0, 57])
def test_dinov2_takes_whole_patches(tmp_path, side):
    with pytest.raises(UserError, match=f"multiple of 14. Received: {side}"):
        dinov2.write(tmp_path, side)
