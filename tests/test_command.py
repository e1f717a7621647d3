"""The command starts without TensorFlow's lines, and says everything else."""

import os
import sys

import pytest

import keras_randlora_command as command

pytestmark = pytest.mark.any_backend

LINES = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1796059291.613170    5062 port.cc:153] oneDNN custom operations are on.
E0000 00:00:1796059299.852219    5062 cuda_platform.cc:52] failed call to cuInit.
2026-11-30 17:21:16.123456: I tensorflow/core/util/port.cc:153] oneDNN is on.
To enable the following instructions: AVX2 FMA, rebuild TensorFlow.
Error: this is news.
I0000 is a name.
"""


def test_only_start_up_lines_are_hidden(capfd):
    with pytest.raises(ValueError), command.quiet():
        os.write(2, LINES.encode())
        raise ValueError
    os.write(2, b"after")
    shown = capfd.readouterr().err.splitlines()
    assert shown == ["Error: this is news.", "I0000 is a name.", "after"]


def test_the_command_is_that_of_the_package(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["keras-randlora", "info", "nowhere.safetensors"])
    assert command.main() == 1
    assert "no adapter file 'nowhere.safetensors'" in capsys.readouterr().err
