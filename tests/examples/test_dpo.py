"""`examples/dpo.py` on the tiny Llama that it loads without a preset."""

import json
import subprocess
import sys
from pathlib import Path

import dpo as script
import keras
import numpy as np
import pytest
from backend import as_numpy
from language_model import Bytes, load, option_parser

import keras_randlora as kr


@pytest.fixture
def policy():
    """Return an adapted model of random weights."""
    model, _ = load(None)
    kr.enable_randlora(model, 4, alpha=8)
    return model


def data_of(count=2):
    return script.pair_rows(script.COURTESY[:count], Bytes(), 32)


def test_rows_are_pairs_that_differ_in_their_answers():
    data = data_of()
    assert {name: array.shape for name, array in data.items()} == {
        "token_ids": (2, 2, 32),
        "targets": (2, 2, 32),
        "weights": (2, 2, 32),
    }
    learned = data["targets"][0][data["weights"][0] > 0]
    assert bytes(learned.tolist()).decode() == "Yes, please.No."
    np.testing.assert_array_equal(data["token_ids"][0, 0, :5], list(b"Tea? "))


def test_the_loss_is_that_of_the_paper(policy):
    data = data_of()
    model = script.Preferences(policy, beta=0.5)
    reference = as_numpy(model(data))
    tuned = kr.get_adapter(policy)
    rng = np.random.default_rng(0)
    kr.set_adapter(
        policy, {k: a + 0.05 * rng.standard_normal(a.shape) for k, a in tuned.items()}
    )
    outputs = as_numpy(model(data))
    gains = outputs.astype("float64") - reference
    margins = 0.5 * (gains[:, 0] - gains[:, 1])
    expected = np.mean(np.log1p(np.exp(-margins)))
    loss = float(as_numpy(model.compute_loss(data, y_pred=model(data))))
    assert np.abs(margins).max() > 0.01
    assert loss == pytest.approx(expected, rel=1e-4)
    assert float(as_numpy(model.preferred.result())) == np.mean(margins > 0)
    log_probabilities = as_numpy(
        keras.ops.log_softmax(
            policy(
                {
                    "token_ids": data["token_ids"][:, 0],
                    "padding_mask": np.ones((2, 32), "int32"),
                }
            )
        )
    )
    by_hand = np.take_along_axis(
        log_probabilities, data["targets"][:, 0, :, None], axis=-1
    )[..., 0]
    np.testing.assert_allclose(
        outputs[:, 0], (by_hand * data["weights"][:, 0]).sum(axis=-1), rtol=1e-4
    )


def test_training_prefers_the_chosen_and_leaves_the_base(policy, capsys):
    options = option_parser(script.__doc__).parse_args(
        ["--steps", "6", "--batch-size", "2"]
    )
    options.beta = 0.5
    model = script.Preferences(policy, options.beta)
    data = data_of()
    before = as_numpy(model(data))
    script.train(policy, data, options)
    losses = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert float(losses[0]) == pytest.approx(np.log(2), abs=1e-4)
    assert float(losses[-1]) < np.log(2) - 0.05
    gains = as_numpy(model(data)) - before
    assert (gains[:, 0] > gains[:, 1]).all()
    with kr.base_only(policy):
        np.testing.assert_allclose(as_numpy(model(data)), before, atol=1e-3)


def test_a_run_writes_its_adapter(tmp_path, capsys):
    pairs, adapter = tmp_path / "pairs.jsonl", tmp_path / "adapter.safetensors"
    pairs.write_text("\n".join(map(json.dumps, script.COURTESY)))
    command = ["--data", pairs, "--output", adapter, "--steps", "1"]
    command += ["--batch-size", "2", "--rank", "4", "--sequence-length", "24"]
    assert script.main([*map(str, command)]) == 0
    assert "mean loss: 0.69314" in capsys.readouterr().out
    model, _ = load(None)
    assert kr.load_adapter(model, adapter).trainable > 0
    pairs.write_text('{"prompt": "a", "chosen": "b"}')
    assert script.main([*map(str, command)]) == 2
    assert "pair 1 lacks 'rejected'" in capsys.readouterr().err


@pytest.mark.any_backend
def test_help_as_a_file():
    command = [sys.executable, script.__file__, "--help"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path.home())
    assert found.returncode == 0 and "--beta" in found.stdout
