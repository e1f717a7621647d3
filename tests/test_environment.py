"""The tests run where and on what they claim to."""

import os
import subprocess
import sys

import keras
import pytest
import xla_programs


def test_the_requested_backend_runs():
    assert keras.backend.backend() == os.environ["KERAS_BACKEND"]


def test_importing_the_package_loads_no_other_framework():
    code = (
        "import sys, keras; before = set(sys.modules); import keras_randlora;"
        "print(sorted({'jax', 'keras_hub', 'peft', 'tensorflow', 'torch',"
        " 'transformers'} & (set(sys.modules) - before)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split("\n")[-2] == "[]"


@pytest.mark.skipif(
    os.environ.get("RANDLORA_REQUIRE_GPU") != "1",
    reason="RANDLORA_REQUIRE_GPU is not 1",
)
def test_arrays_live_on_the_gpu():
    array = keras.ops.ones((2, 2), dtype="float32")
    if keras.backend.backend() == "jax":
        (device,) = array.devices()
        assert device.platform == "gpu"
    elif keras.backend.backend() == "tensorflow":
        assert "GPU" in array.device
    else:
        assert array.device.type == "cuda"


@pytest.mark.any_backend
def test_programs_are_kept_of_runs_that_passed(tmp_path):
    kept = tmp_path / "programs"

    def run(program, passed, **options):
        folder = xla_programs.folder_of_run(kept)
        (folder / program).write_bytes(b"four")
        xla_programs.end_run(folder, passed, kept, **options)
        assert list(tmp_path.iterdir()) == ([kept] if kept.exists() else [])
        return sorted(one.name for one in kept.glob("*"))

    assert run("first", True) == ["first"]
    assert run("incomplete", False) == ["first"]
    assert run("second", True) == ["first", "second"]
    assert run("third", True, most_bytes=11) == []
