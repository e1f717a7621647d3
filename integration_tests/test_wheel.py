"""Wheel and sdist work in an environment with one backend, and without keras-hub."""

import subprocess
import sys
import venv
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parents[1]
BACKEND = keras.backend.backend()
WORKER = """
import sys
import keras, numpy as np
import keras_randlora as kr

assert "site-packages" in kr.__file__, kr.__file__
others = {"tensorflow", "jax", "torch", "keras_hub", "matplotlib"} - {BACKEND}
present = {name for name in others if __import__("importlib.util").util.find_spec(name)}
assert not present, present

model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
base = model.predict_on_batch(np.ones((2, 6)))
model.enable_randlora(rank=2, targets="d")
model.compile(keras.optimizers.AdamW(1e-2), "mse")
keep = kr.RandLoRACheckpoint("a.safetensors", "loss", save_best_only=True)
model.fit(np.ones((8, 6)), np.ones((8, 4)), verbose=0, callbacks=[keep])
tuned = model.predict_on_batch(np.ones((2, 6)))
assert np.abs(tuned - base).max() > 1e-4
kr.export_merged(model, "m.keras", "keras")
kr.disable_randlora(model)
model.load_randlora("a.safetensors")
np.testing.assert_allclose(model.predict_on_batch(np.ones((2, 6))), tuned, atol=1e-5)
kr.merge_randlora(model)
np.testing.assert_allclose(model.predict_on_batch(np.ones((2, 6))), tuned, atol=1e-5)
print("works", kr.__version__)
"""


def run(*command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the sdist, and from it the wheel, as `pip` would."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
    (sdist,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return wheel, sdist


@pytest.fixture(scope="module")
def python(tmp_path_factory, built):
    """Make an environment with the wheel's own requirements and one backend."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pinned = [
        line
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if line.startswith(f"{BACKEND}==")
    ]
    # Named with its version: a bare `torch` would bring gigabytes of CUDA libraries.
    limits = ROOT / "constraints.txt"
    install = (python, "-m", "pip", "install", "-q", "-c", limits)
    run(*install, *pinned, built[0], folder=folder)
    return python


@pytest.mark.parametrize("kind", [0, 1], ids=["wheel", "sdist"])
def test_it_works_where_nothing_else_is(built, python, kind, tmp_path):
    install = (python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall")
    run(*install, built[kind], folder=tmp_path)
    script = f"BACKEND = {BACKEND!r}\n" + WORKER
    environment = ("env", "-u", "PYTHONPATH", f"KERAS_BACKEND={BACKEND}")
    out = run(*environment, python, "-c", script, folder=tmp_path)
    assert out.startswith("works")
