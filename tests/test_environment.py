"""The tests run where and on what they claim to."""

import os
import subprocess
import sys

import keras
import pytest


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
