"""The updates' norms and ranks, logged during `fit`."""

import numpy as np
import pytest
from fits import MLP, adapted, fit
from models import compile_model

import keras_randlora as kr


def test_training_that_diverges_is_logged_to_its_end():
    model = adapted()
    gamma = model.get_layer("hidden_2").randlora.gamma
    gamma.assign(np.full(gamma.shape, np.nan))
    logger = kr.RandLoRALogger()
    history = fit(model, logger, epochs=1).history
    assert np.isnan([history["effective_rank"][0], history["update_norm"][0]]).all()
    assert {np.isnan(record.effective_rank) for record in logger.records} == {True}


def test_norms_and_ranks_are_those_of_the_update():
    model, logger = adapted(), kr.RandLoRALogger()
    kernels = kr.analysis.kernels(model)
    history = fit(model, logger, epochs=2).history
    updates = kr.analysis.updates(model)
    last = {record.path: record for record in logger.records if record.step == 2}
    assert len(logger.records) == 6 and set(last) == set(updates)
    for path, update in updates.items():
        singular = np.linalg.svd(update, compute_uv=False)
        shares = singular / singular.sum()
        entropy = -np.sum(shares * np.log(np.maximum(shares, 1e-300)))
        record = last[path]
        assert record.norm == pytest.approx(np.sqrt(np.sum(singular**2)), rel=1e-6)
        assert record.effective_rank == pytest.approx(np.exp(entropy), rel=1e-4)
        kernel_norm = np.linalg.norm(kernels[path])
        assert record.relative_norm == pytest.approx(record.norm / kernel_norm, 1e-5)
    total = np.sqrt(sum(np.sum(update**2) for update in updates.values()))
    assert history["update_norm"][-1] == pytest.approx(total, rel=1e-6)
    everything = np.sqrt(sum(np.sum(kernel**2) for kernel in kernels.values()))
    assert history["relative_update_norm"][-1] == pytest.approx(
        total / everything, 1e-5
    )
    ranks = [record.effective_rank for record in last.values()]
    assert history["effective_rank"][-1] == pytest.approx(np.mean(ranks))


def test_the_logger_measures_after_steps_as_well():
    logger = kr.RandLoRALogger(every=2)
    size = -(-len(MLP.inputs()) // 4)  # four batches an epoch
    fit(adapted(), logger, epochs=1, batch_size=size)
    assert sorted({record.step for record in logger.records}) == [2, 4]
    assert len(logger.records) == 2 * 3


def test_a_new_optimizer_counts_from_one_and_is_measured_anew():
    model, logger = adapted(), kr.RandLoRALogger()
    fit(model, logger, epochs=1)
    compile_model(model)
    fit(model, logger, epochs=1)
    first, second = logger.records[:3], logger.records[3:]
    assert [record.step for record in logger.records] == [1] * 6
    assert all(a.norm != b.norm for a, b in zip(first, second, strict=True))


def test_tensorboard_gets_each_layer(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = kr.RandLoRALogger(tmp_path)
    fit(adapted(), logger, epochs=2)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (tag,) = [t for t in events.Tags()["tensors"] if t.endswith("norm/hidden_1")][:1]
    assert tag == "randlora/norm/hidden_1"
    assert [event.step for event in events.Tensors(tag)] == [1, 2]


def test_tensorboard_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.summary", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        kr.RandLoRALogger("logs")
