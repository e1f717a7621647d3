"""The command `keras-randlora`: what it writes, says and returns."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import artefacts
import keras
import keras_hub
import numpy as np
import pytest
from models import EXAMPLES
from versions import KERAS_HUB, NEEDS_PRESETS_ALONE

import keras_randlora as kr
from keras_randlora import cli
from keras_randlora.cli import main

ROOT = Path(kr.__file__).parents[1]
OTHER = {"jax": "torch", "tensorflow": "jax", "torch": "jax"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a plain preset, two adapter files and a PEFT folder."""
    folder = tmp_path_factory.mktemp("cli")
    # Earlier versions fail at the end, when all but a preprocessor is written.
    fails = contextlib.suppress(*[AttributeError] * (KERAS_HUB < (0, 30)))
    with fails:
        EXAMPLES["llama3"].build().save_to_preset(str(folder / "base"))
    for seed, rank in ((1, 3), (2, 5)):
        model = artefacts.adapted("llama3", seed, rank=rank)
        kr.save_adapter(model, folder / f"{seed}.safetensors")
    kr.peft.save(model, folder / "peft")
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Run a command in the folder; return its status, stdout and stderr."""
    monkeypatch.chdir(folder)

    def run(command):
        try:
            status = main(command.split())
        except SystemExit as exit:
            status = exit.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def logits(model):
    return artefacts.outputs(model, EXAMPLES["llama3"].inputs())


def load(path):
    return keras_hub.models.CausalLM.from_preset(str(path), preprocessor=None)


def adapted_by(*files):
    model = EXAMPLES["llama3"].build()
    kr.merge_adapters(model, dict(files))
    return logits(model)


@pytest.mark.any_backend
def test_info_of_an_adapter_file(run):
    status, out, _ = run("info 1.safetensors")
    assert status == 0
    assert re.search(r"1\.safetensors: keras-randlora adapter, [\d,]+ bytes", out)
    assert "rank=3" in out and "basis='uniform'" in out
    layer = (
        r"transformer_layer_0/self_attention/query\s+kernel \(16, 4, 4\), λ \(3, 6\)"
    )
    assert re.search(layer, out)
    count = kr.summary(artefacts.adapted("llama3")).adapter
    assert re.search(rf"adapted layers, {count:,} trained parameters", out)


def test_info_tells_the_epoch_of_a_checkpoint(run, folder):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    kr.enable_randlora(model, rank=2, targets="d")
    model.compile("sgd", "mse")
    keep = kr.RandLoRACheckpoint(folder / "kept.safetensors", "loss")
    model.fit(np.ones((4, 6)), np.zeros((4, 4)), epochs=2, verbose=0, callbacks=[keep])
    value = keep.newest().moment.value
    out = run("info kept.safetensors")[1]
    assert f"\nsaved after epoch 2, step 2, loss {value:g}\n" in out


@pytest.mark.any_backend
def test_info_shows_metadata(run, folder):
    assert "metadata" not in run("info 1.safetensors")[1]
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, name="d")])
    kr.enable_randlora(model, rank=2, targets="d")
    names = {"class_names": ["good", "bad"], "version": 3}
    kr.save_adapter(model, folder / "named.safetensors", metadata=names)
    out = run("info named.safetensors")[1]
    assert "\nmetadata: class_names=['good', 'bad'], version=3\n" in out


@pytest.mark.any_backend
def test_a_folder_without_a_tokenizer_is_seen(tmp_path):
    assert cli._has_preprocessor(tmp_path / "llama3.2_1b")  # no folder: a name
    (tmp_path / "config.json").touch()
    assert not cli._has_preprocessor(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    assert cli._has_preprocessor(tmp_path)
    (tmp_path / "task.json").touch()
    assert not cli._has_preprocessor(tmp_path)
    (tmp_path / "preprocessor.json").touch()
    assert cli._has_preprocessor(tmp_path)


@pytest.mark.any_backend
def test_info_of_a_peft_folder(run):
    status, out, _ = run("info peft")
    assert status == 0
    assert "PEFT RandLora folder" in out and "r=5" in out
    assert re.search(r"layers\.0\.self_attn\.q_proj\s+λ \(5, 4\), γ \(4, 16\)", out)


@NEEDS_PRESETS_ALONE
def test_merge_to_a_preset(run, folder):
    command = "merge --preset base --adapter 1.safetensors --output out/merged"
    assert run(command)[0] == 0
    np.testing.assert_allclose(
        logits(load(folder / "out" / "merged")),
        adapted_by((folder / "1.safetensors", 1.0)),
        atol=1e-5,
    )
    status, _, err = run(command)
    assert status == 1
    assert "exists already. Pass --overwrite" in err
    assert run(f"{command} --overwrite")[0] == 0


def test_merge_of_weighted_adapters_to_a_keras_file(run, folder):
    status, out, _ = run(
        "merge --preset base --adapter 1.safetensors=0.7 "
        "--adapter 2.safetensors=-0.3 --output merged.keras"
    )
    assert status == 0
    assert "Merging 0.7 × 1.safetensors, -0.3 × 2.safetensors" in out
    np.testing.assert_allclose(
        logits(keras.saving.load_model(folder / "merged.keras", compile=False)),
        adapted_by((folder / "1.safetensors", 0.7), (folder / "2.safetensors", -0.3)),
        atol=1e-5,
    )


def test_export(run, folder):
    status, out, _ = run(
        "export --preset base --adapter 1.safetensors --format keras --output e.keras"
    )
    assert status == 0
    assert "Loading base" in out and "Writing e.keras" in out
    np.testing.assert_allclose(
        logits(keras.saving.load_model(folder / "e.keras")),
        adapted_by((folder / "1.safetensors", 1.0)),
        atol=1e-5,
    )


def test_convert_both_ways(run, folder):
    way = "convert --preset base"
    assert run(f"{way} --to-peft there --adapter 2.safetensors")[0] == 0
    assert run(f"{way} --from-peft there --output back.safetensors")[0] == 0
    model = EXAMPLES["llama3"].build()
    kr.load_adapter(model, folder / "back.safetensors")
    expected = adapted_by((folder / "2.safetensors", 1.0))
    np.testing.assert_allclose(logits(model), expected, atol=1e-5)


EXPORT = "export --preset base --adapter 1.safetensors"


@pytest.mark.parametrize(
    "command, message",
    [
        ("info none.safetensors", "There is no adapter file 'none.safetensors'"),
        ("info base", "adapter_config.json"),
        ("merge --preset base --adapter no --output m", "no adapter file 'no'"),
        ("merge --preset base --adapter 1.safetensors --output base", "--overwrite"),
        (
            "merge --preset base --adapter 1.safetensors=1 --adapter 1.safetensors=2 "
            "--output m",
            "named twice",
        ),
        ("merge --preset nowhere --adapter 1.safetensors --output m", "nowhere"),
        (
            f"{EXPORT} --model Nothing --format keras --output m.keras",
            "class 'Nothing'",
        ),
        (f"{EXPORT} --format keras --output m.h5", r"must end in '\.keras'"),
        ("convert --preset base --from-peft base --output o.safetensors", "config"),
    ],
)
def test_mistakes_print_one_line(run, folder, command, message):
    before = sorted(folder.iterdir())
    status, _, err = run(command)
    assert status == 1
    assert re.fullmatch(rf"keras-randlora: error: .*{message}.*\n", err)
    assert sorted(folder.iterdir()) == before


@pytest.mark.any_backend
@pytest.mark.parametrize(
    "command, message",
    [
        ("", "COMMAND"),
        ("train", "invalid choice: 'train'"),
        ("merge --preset base", "--adapter, --output"),
        (f"{EXPORT} --format h5 --output m", "--format: invalid choice: 'h5'"),
        (
            "convert --preset base --from-peft peft --adapter 1.safetensors",
            "--from-peft goes with --output, not with --adapter",
        ),
        (
            "convert --preset base --to-peft p --output o.safetensors",
            "--to-peft goes with --adapter, not with --output",
        ),
    ],
)
def test_wrong_usage(run, command, message):
    status, _, err = run(command)
    assert status == 2
    assert message in err and "Traceback" not in err


@pytest.mark.any_backend
@pytest.mark.parametrize("command", ["info", "merge", "export", "convert"])
def test_help_has_examples(run, command):
    assert command in run("--help")[1]
    status, out, _ = run(f"{command} --help")
    assert status == 0
    assert f"examples:\n  keras-randlora {command} " in out


@pytest.mark.any_backend
@NEEDS_PRESETS_ALONE
def test_real_process_on_another_backend(folder):
    backend = OTHER[keras.backend.backend()]
    done = subprocess.run(
        [sys.executable, "-m", "keras_randlora", "merge", "--preset", "base"]
        + ["--adapter", "1.safetensors", "--output", "real", "--backend", backend],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"Loading base on {backend}" in done.stdout
    np.testing.assert_allclose(
        logits(load(folder / "real")),
        adapted_by((folder / "1.safetensors", 1.0)),
        atol=1e-5,
    )


@pytest.mark.any_backend
def test_a_pipe_without_greek_letters(folder):
    """As on Windows, where what a pipe gets has one of 256 letters."""
    done = subprocess.run(
        [sys.executable, "-m", "keras_randlora", "info", "1.safetensors"],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        encoding="cp1252",
    )
    assert done.returncode == 0, done.stderr
    assert "? (3, 6), ? (6, 16)" in done.stdout


def test_a_folder_of_something_else_is_no_model(run, folder):
    shutil.copytree(folder / "base", folder / "other")
    (folder / "other" / "task.json").write_text('{"name": "λ"}', "utf-8")
    status, _, error = run(
        "merge --preset other --adapter 1.safetensors --output other.keras"
    )
    assert status == 1 and "'other' cannot be read as a model: it has no" in error


def test_an_archive_of_something_else_is_no_model(run, folder):
    with zipfile.ZipFile(folder / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "no model")
    status, _, error = run(
        "merge --preset other.keras --adapter 1.safetensors --output m.keras"
    )
    assert status == 1 and "'other.keras' cannot be read as a model" in error
