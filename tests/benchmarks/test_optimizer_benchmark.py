"""The comparison of optimizers: its runs leave the base as it was."""

import types

import keras
import numpy as np
from backend import BACKEND, as_numpy

from benchmarks import optimizers


def test_runs_begin_with_the_same_base(monkeypatch, capsys):
    monkeypatch.setattr(optimizers, "EXAMPLES", 64)
    task = optimizers.Task(seed=0)
    before = [as_numpy(weight) for weight in task.model.weights]
    args = types.SimpleNamespace(rank=8, epochs=2)
    losses = [task.run(keras.optimizers.AdamW(3e-3), 0, args) for _ in range(2)]
    assert losses[0] == losses[1]
    for weight, value in zip(task.model.weights, before, strict=True):
        np.testing.assert_array_equal(as_numpy(weight), value)


def test_the_table_has_the_best_rate_and_the_spread(monkeypatch, capsys):
    class Task:
        def __init__(self, seed):
            self.seed = seed

        def run(self, rate, seed, args):
            return abs(rate - 1e-2) + self.seed

    monkeypatch.setattr(optimizers, "Task", Task)
    monkeypatch.setattr(optimizers, "methods", lambda: {"some": lambda rate: rate})
    monkeypatch.setenv("KERAS_BACKEND", "restored after the test")
    assert optimizers.main(["--seeds", "3", "--backend", BACKEND]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[1:-1]] == [
        "some",
        "0.01",
        "1.000 ± 1.000",
    ]


def test_decay_spares_gamma_where_it_is_told_to():
    made = {name: make(1e-3) for name, make in optimizers.methods().items()}
    gamma = keras.Variable(np.ones(2), name="gamma")
    for optimizer in made.values():
        optimizer.build([gamma])
    assert made["AdamW, decay 0.1"]._use_weight_decay(gamma)
    assert not made["AdamW, decay 0.1, not of γ"]._use_weight_decay(gamma)
