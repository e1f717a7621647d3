"""An interrupted training goes on exactly as one that was not."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from resume_worker import MODELS, RESTORE

WORKER = Path(__file__).parents[1] / "resume_worker.py"


def run(phase, folder, *models):
    return subprocess.run(
        [sys.executable, "-W", "ignore", str(WORKER), phase, str(folder), *models],
        env={**os.environ, "PYTHONPATH": str(WORKER.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run all phases, each in a process of its own, and return their folder."""
    folder = tmp_path_factory.mktemp("resume")
    trained = run("train", folder)
    assert trained.returncode == 0, trained.stderr
    for model in MODELS:  # the process dies, so one for each model
        assert run("killed", folder, model).returncode == -9
    resumed = run("resume", folder)
    assert resumed.returncode == 0, resumed.stderr
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
