"""An interrupted training goes on exactly as one that was not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from resume_worker import MODELS, RESTORE

WORKER = Path(__file__).parents[1] / "resume_worker.py"
STATUSES = {"train": 0, "killed": -signal.SIGKILL, "resume": 0}

pytestmark = [pytest.mark.long_setup, pytest.mark.usefixtures("quick_processes")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run all phases, each in a process of its own, and return their folder."""
    folder = tmp_path_factory.mktemp("resume")
    for model in MODELS:
        (folder / model).mkdir()
        for phase, status in STATUSES.items():
            command = ["-W", "ignore", WORKER, model, phase, folder / model]
            done = subprocess.run(
                [sys.executable, *map(str, command)],
                env={**os.environ, "PYTHONPATH": str(WORKER.parents[1])},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == status, done.stderr
    return folder


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", RESTORE)
def test_resumed_run_is_bit_equal(runs, model, way):
    with np.load(runs / model / "one_go.npz") as expected:
        with np.load(runs / model / f"{way}.npz") as resumed:
            assert set(resumed) == set(expected)
            for name in expected:
                np.testing.assert_array_equal(resumed[name], expected[name], name)


@pytest.mark.parametrize("model", MODELS)
def test_training_moves_after_the_interruption(runs, model):
    with np.load(runs / model / "one_go.npz") as run:
        assert len(set(run["losses"])) == len(run["losses"])
