"""Adapters saved during `fit`."""

import warnings

import keras
import numpy as np
import pytest
from backend import assert_same_arrays
from fits import MLP, adapted, fit
from models import compile_model

import keras_randlora as kr

NAN = float("nan")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_each_epoch_writes_the_adapter_of_its_moment(tmp_path):
    model = adapted()
    path = tmp_path / "new" / "{epoch}.safetensors"
    fit(model, kr.RandLoRACheckpoint(path), epochs=2)
    after = kr.get_adapter(model)
    assert names(tmp_path / "new") == ["1.safetensors", "2.safetensors"]

    alone = adapted()
    fit(alone, epochs=1)
    first = kr.get_adapter(alone)
    for name, expected in (("1", first), ("2", after)):
        kr.load_adapter(model, tmp_path / "new" / f"{name}.safetensors")
        assert_same_arrays(kr.get_adapter(model), expected)
    assert any(np.any(first[key] != after[key]) for key in after)


class Losses(keras.callbacks.Callback):
    """Reports losses that are made up."""

    def __init__(self, name, values):
        super().__init__()
        self.name, self.values = name, values

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]


@pytest.mark.parametrize(
    "monitor, mode, values, saved",
    [
        ("val_loss", "auto", [3.0, 1.0, 2.0, 1.0], [1, 2]),
        ("val_accuracy", "auto", [0.5, 0.4, 0.6, 0.6], [1, 3]),
        ("score", "max", [1.0, 2.0, 3.0, 0.0], [1, 2, 3]),
        ("score", "min", [1.0, 2.0, float("nan"), 0.0], [1, 4]),
        ("score", "min", [float("nan"), 2.0, float("nan"), 1.0], [2, 4]),
        ("score", "max", [float("nan"), 2.0, 1.0, float("inf")], [2, 4]),
    ],
)
def test_only_the_best_is_kept(tmp_path, monitor, mode, values, saved):
    keep = kr.RandLoRACheckpoint(
        tmp_path / "{epoch}.safetensors", monitor, mode=mode, save_best_only=True
    )
    fit(adapted(), Losses(monitor, values), keep, epochs=4)
    assert names(tmp_path) == [f"{epoch}.safetensors" for epoch in saved]
    assert keep.best == values[saved[-1] - 1]
    assert keep.latest == tmp_path / f"{saved[-1]}.safetensors"


def test_only_what_is_better_than_the_run_before(tmp_path):
    keep = kr.RandLoRACheckpoint(
        tmp_path / "{epoch}.safetensors",
        save_best_only=True,
        initial_value_threshold=2.5,
    )
    fit(adapted(), Losses("val_loss", [3.0, 2.0, 2.2]), keep)
    assert names(tmp_path) == ["2.safetensors"] and keep.best == 2.0


KEPT = {
    "last": (dict(keep_last=2), [3.0, 1.0, 2.0, 4.0], [3, 4]),
    "best": (dict(keep_best=2), [3.0, 1.0, 2.0, 4.0], [2, 3]),
    "both": (dict(keep_last=1, keep_best=1), [3.0, 1.0, 2.0, 4.0], [2, 4]),
    "more than there are": (dict(keep_last=9, keep_best=9), [3.0, 1.0], [1, 2]),
    "NaN is not good": (dict(keep_best=2), [NAN, 1.0, NAN, 4.0], [2, 4]),
    "NaN is new": (dict(keep_last=1, keep_best=1), [2.0, 1.0, NAN], [2, 3]),
    "equal ones": (dict(keep_best=1), [1.0, 1.0, 1.0], [1]),
    "improvements": (dict(keep_last=1, save_best_only=True), [3.0, 1.0, 2.0], [2]),
    "largest": (dict(keep_best=2, mode="max"), [3.0, 1.0, 2.0, 4.0], [1, 4]),
}


def epochs_in(folder):
    return sorted(
        int(name.split(".")[0]) for name in {p.name for p in folder.iterdir()}
    )


@pytest.mark.parametrize("name", KEPT)
def test_so_many_files_are_kept(tmp_path, name):
    options, values, left = KEPT[name]
    path = tmp_path / "{epoch}.safetensors"
    keep = kr.RandLoRACheckpoint(path, with_optimizer=True, **options)
    fit(adapted(), Losses("val_loss", values), keep, epochs=len(values))
    assert names(tmp_path) == sorted(
        f"{epoch}{part}.safetensors" for epoch in left for part in ("", ".optimizer")
    )


def test_a_run_that_goes_on_counts_the_files_of_before(tmp_path):
    path = tmp_path / "{epoch}.safetensors"

    def keep():
        return kr.RandLoRACheckpoint(path, keep_last=1, keep_best=2)

    (tmp_path / "9.safetensors").write_bytes(b"of somebody else")
    model = adapted()
    fit(model, Losses("val_loss", [3.0, 1.0, 2.0, 4.0]), keep(), epochs=4)
    assert epochs_in(tmp_path) == [2, 3, 4, 9]
    resumed = adapted()
    newest = keep().newest()
    assert newest.path == tmp_path / "4.safetensors"
    assert newest.moment == (4, 4, "val_loss", 4.0)
    kr.load_adapter(resumed, newest.path)
    values = Losses("val_loss", [None] * 4 + [5.0, 1.5])
    fit(resumed, values, keep(), initial_epoch=newest.moment.epoch, epochs=6)
    assert epochs_in(tmp_path) == [2, 6, 9]
    fit(adapted(), Losses("val_loss", [8.0]), keep(), epochs=1)  # a new run
    assert epochs_in(tmp_path) == [1, 2, 6, 9]


@pytest.mark.parametrize("way", ["adapter", "optimizer", "epoch"])
def test_the_best_of_before_an_interruption_stays(tmp_path, way, capsys):
    path = tmp_path / "best.safetensors"

    def best():
        return kr.RandLoRACheckpoint(path, save_best_only=True, with_optimizer=True)

    first = adapted()
    fit(first, Losses("val_loss", [3.0, 1.0, 2.0]), best())
    before = path.read_bytes()
    resumed = adapted()
    if way == "adapter":
        kr.load_adapter(resumed, path)
    elif way == "optimizer":
        kr.load_optimizer(resumed, tmp_path / "best.optimizer.safetensors")
    begins = 3 if way == "epoch" else 0
    again, values = best(), [None] * begins + [1.5, 1.0]
    fit(
        resumed,
        Losses("val_loss", values),
        again,
        initial_epoch=begins,
        epochs=begins + 2,
    )
    assert path.read_bytes() == before and again.best == 1.0 and again.latest is None
    assert "resumes with the best so far: val_loss 1." in capsys.readouterr().out
    fit(resumed, Losses("val_loss", [0.5]), best(), epochs=1)
    assert best().newest().moment.value == 0.5
    fit(adapted(), Losses("val_loss", [7.0]), best(), epochs=1)  # a new run
    assert best().newest().moment.value == 7.0


def test_a_file_that_cannot_be_written_deletes_no_other(tmp_path, monkeypatch):
    keep = kr.RandLoRACheckpoint(tmp_path / "{epoch}.safetensors", keep_last=1)
    model = adapted()
    fit(model, keep, epochs=1)

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("keras_randlora.files.adapter_file.write_atomically", full)
    keep.set_model(model)
    keep.on_epoch_begin(1)
    with pytest.raises(OSError, match="no space left"):
        keep.on_epoch_end(1, {})
    assert names(tmp_path) == ["1.safetensors"]


def test_files_within_an_epoch_tell_the_epochs_that_were_finished(tmp_path):
    path = tmp_path / "{epoch}-{batch}.safetensors"
    keep = kr.RandLoRACheckpoint(path, save_freq=1, keep_last=3)
    assert keep.newest() is None
    fit(adapted(), keep, epochs=2, batch_size=len(MLP.inputs()) // 2)
    assert names(tmp_path) == [f"{n}.safetensors" for n in ("1-2", "2-1", "2-2")]
    newest = keep.newest()
    assert newest.path.name == "2-2.safetensors"
    assert newest.moment == (1, 4, "val_loss", None)


def test_two_files_that_belong_together_are_kept_where_one_cannot_be_written(tmp_path):
    model = adapted()
    keep = kr.RandLoRACheckpoint(tmp_path / "a.safetensors", with_optimizer=True)
    fit(model, keep, epochs=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fit(model, epochs=1)
    gamma = model.get_layer("hidden_2").randlora.gamma
    gamma.assign(np.full(gamma.shape, np.nan))
    keep.set_model(model)
    with pytest.raises(ValueError, match="hidden_2/gamma' holds values that are not"):
        keep.on_epoch_end(0, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_metric_that_is_missing_loses_nothing(tmp_path, recwarn):
    keep = kr.RandLoRACheckpoint(tmp_path / "a.safetensors", save_best_only=True)
    keep.set_model(adapted())
    warnings.simplefilter("default", UserWarning)
    keep.on_epoch_end(0, {"loss": 1.0})
    messages = [str(w.message) for w in recwarn]
    assert sum("monitors 'val_loss', which training" in m for m in messages) == 1
    assert names(tmp_path) == ["a.safetensors"]


def test_steps_are_counted_over_epochs(tmp_path):
    path = tmp_path / "{epoch}-{batch}.safetensors"
    size = len(MLP.inputs()) // 2  # two batches an epoch
    fit(adapted(), kr.RandLoRACheckpoint(path, save_freq=3), epochs=3, batch_size=size)
    assert names(tmp_path) == [f"{name}.safetensors" for name in ("2-1", "3-2")]


def test_steps_that_keras_runs_several_at_a_time_are_counted(tmp_path):
    """With `steps_per_execution=2` Keras calls after batches 1, 3 and 5 only."""
    path = tmp_path / "{epoch}-{batch}.safetensors"
    keep = kr.RandLoRACheckpoint(path, save_freq=4)
    keep.set_model(adapted())
    for epoch in range(2):
        keep.on_epoch_begin(epoch)
        for batch in (1, 3, 5):
            keep.on_train_batch_end(batch, {})
    assert names(tmp_path) == [f"{name}.safetensors" for name in ("1-4", "2-2", "2-6")]


def test_training_goes_on_from_adapter_and_optimizer(tmp_path):
    model = adapted()
    keep = kr.RandLoRACheckpoint(tmp_path / "a.safetensors", with_optimizer=True)
    fit(model, keep, epochs=2)
    fit(model, epochs=1)
    assert names(tmp_path) == ["a.optimizer.safetensors", "a.safetensors"]

    resumed = adapted()
    kr.load_adapter(resumed, tmp_path / "a.safetensors")
    kr.load_optimizer(resumed, tmp_path / "a.optimizer.safetensors")
    fit(resumed, epochs=1)
    assert_same_arrays(kr.get_adapter(resumed), kr.get_adapter(model))


def test_files_hold_what_the_model_computes_with(tmp_path):
    """With `use_ema=True` that is no average, but at the end of `fit` or if swapped."""

    def files(name, *before):
        model = MLP.build()
        kr.enable_randlora(model, rank=2, targets="all-linear")
        compile_model(model, optimizer=keras.optimizers.Adam(1e-3, use_ema=True))
        fit(model, *before, kr.RandLoRACheckpoint(tmp_path / name))
        averages = kr.get_adapter(model)
        kr.load_adapter(model, tmp_path / name)
        return kr.get_adapter(model), averages

    raw, averages = files("raw.safetensors")
    plain = MLP.build()
    kr.enable_randlora(plain, rank=2, targets="all-linear")
    compile_model(plain, optimizer=keras.optimizers.Adam(1e-3))
    fit(plain)
    for key, array in kr.get_adapter(plain).items():
        np.testing.assert_allclose(raw[key], array, atol=1e-6)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    swapped, again = files("averages.safetensors", swap)
    for key, array in averages.items():
        np.testing.assert_allclose(again[key], array, atol=1e-6)
        np.testing.assert_allclose(swapped[key], array, atol=1e-6)
    assert any(np.any(np.abs(raw[k] - averages[k]) > 1e-5) for k in raw)


def test_it_says_what_it_writes(tmp_path, capsys):
    fit(adapted(), kr.RandLoRACheckpoint(tmp_path / "a.safetensors", verbose=1))
    assert capsys.readouterr().out.count(f"adapter saved to {tmp_path}") == 3


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(path="a.keras"), ValueError, "ends in '.safetensors'"),
        (dict(save_freq="step"), ValueError, "save_freq='step'"),
        (dict(save_freq=0), ValueError, "save_freq=0"),
        (dict(save_freq=1.5), TypeError, "save_freq=1.5"),
        (dict(keep_last=2), ValueError, "'a.safetensors' names one only"),
        (dict(keep_best=0, monitor="loss"), ValueError, "keep_best=0"),
        (dict(keep_best=2, monitor="score"), ValueError, "pass mode='min'"),
        (dict(save_best_only=True, mode="best"), ValueError, "mode='best'"),
        (dict(save_best_only=True, monitor="score"), ValueError, "pass mode='min'"),
    ],
)
def test_wrong_arguments_of_the_checkpoint(options, error, message):
    with pytest.raises(error, match=message):
        kr.RandLoRACheckpoint(**{"path": "a.safetensors", **options})


def test_a_field_that_training_does_not_report(tmp_path):
    keep = kr.RandLoRACheckpoint(tmp_path / "{val_loss:.1f}.safetensors")
    with pytest.raises(ValueError, match="names 'val_loss', which .* 'loss'"):
        fit(adapted(), keep)


@pytest.mark.parametrize("make", [kr.RandLoRALogger, None])
def test_a_plain_model_is_refused(make, tmp_path):
    callback = make() if make else kr.RandLoRACheckpoint(tmp_path / "a.safetensors")
    model = MLP.build()
    compile_model(model)
    with pytest.raises(ValueError, match="not adapted"):
        fit(model, callback)
