"""A model over two processes with two devices each is trained and saved as one."""

import json
import os
from pathlib import Path

import hosts_worker as worker
import keras
import numpy as np
import pytest
from processes import free_port, run_together
from versions import NEEDS_ORBAX

import keras_randlora as kr
from keras_randlora.files.adapter_file import read_adapter
from keras_randlora.tools import Hosts, hosts_of

pytestmark = [
    pytest.mark.long_setup,
    pytest.mark.usefixtures("quick_processes"),
    pytest.mark.skipif(
        keras.backend.backend() != "jax", reason="keras.distribution is for JAX"
    ),
]

TWO_DEVICES = {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {os.environ['XLA_FLAGS']}"
}
RTOL = 1e-5
ATOL = 1e-6
PAIR_SAVED = ("saved", "resumed")
runs = pytest.mark.parametrize("run", worker.RUNS)


def run_pair(folder, *arguments, seconds):
    """Run both processes of the worker; return how they ended."""
    port = free_port()
    commands = [
        (worker.__file__, folder, port, process, *arguments) for process in (0, 1)
    ]
    return run_together(commands, seconds, (TWO_DEVICES, TWO_DEVICES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run everything that goes well, or is refused, in one pair of processes."""
    folder = tmp_path_factory.mktemp("hosts")
    for ended in run_pair(folder, seconds=400):
        assert ended.status == 0, ended.printed[-5000:]
    return folder


@pytest.fixture(scope="module")
def facts(folder):
    """Give what each of the two processes has found."""
    files = [folder / f"facts_{process}.json" for process in (0, 1)]
    return [json.loads(file.read_text()) for file in files]


def both(facts, run, name):
    """Return what both processes found, which is the same."""
    first, second = (found[run][name] for found in facts)
    assert first == second
    return first


@runs
def test_losses_and_adapters_are_those_of_one_process(facts, run):
    losses = both(facts, run, "losses")
    np.testing.assert_allclose(losses, both(facts, run, "losses alone"), rtol=RTOL)
    assert losses[-1] < losses[0]
    assert both(facts, run, "from alone") < ATOL
    assert len(both(facts, run, "adapter")) == 64  # a checksum, equal on both


@runs
def test_kernels_are_divided_over_both_processes_where_a_map_says_so(facts, run):
    assert both(facts, run, "divided") == (2 if run in worker.SPREAD else 1)


@runs
@pytest.mark.parametrize(
    "what",
    [
        "set",
        "complete",
        "loaded",
        "loaded layouts",
        "peft",
        "base only",
        "on again",
        "resumed",
        "resumed layouts",
        "summary",
        "restored",
        "in place",
    ],
)
def test_what_holds_in_both_processes(facts, run, what):
    assert both(facts, run, what)


@runs
@pytest.mark.parametrize("what", ["written", "optimizer files"])
def test_one_process_writes(facts, run, what):
    assert [found[run][what] for found in facts] == [1, 0]


@runs
@pytest.mark.parametrize("what", ["merged", "exported", "combined", "for good"])
def test_merged_kernels_are_those_of_one_process(facts, run, what):
    assert both(facts, run, "tuned") > 1e-2  # the update is not zero
    assert both(facts, run, what) < ATOL


@runs
def test_the_checkpoints_of_a_run(facts, run):
    files = ["a-2.optimizer.safetensors", "a-2.safetensors"]
    assert both(facts, run, "files of the run") == files
    assert both(facts, run, "newest") == ["a-2.safetensors", 2, worker.STEPS + 4]


@runs
def test_the_logger_and_the_analysis(facts, run):
    norms = both(facts, run, "norms")
    np.testing.assert_allclose(norms, both(facts, run, "norms alone"), rtol=RTOL)
    assert "update_norm" in both(facts, run, "logs")
    spectrum, alone = both(facts, run, "spectrum")
    np.testing.assert_allclose(spectrum, alone, rtol=RTOL, atol=ATOL)
    assert both(facts, run, "kernels") < ATOL
    assert both(facts, run, "updates") == ["inner", "query"]


@pytest.mark.parametrize("run", worker.SPREAD)
def test_merging_forms_no_whole_kernel(facts, run):
    # The text names places of Python's stack, which differ where one process reads the
    # program that the other has compiled.
    for program in (found[run]["program"] for found in facts):
        assert f"[{worker.INNER // 4},{worker.WIDTH}]" in program  # its own rows
        assert f"[{worker.INNER},{worker.WIDTH}]" not in program


def test_merging_a_large_kernel_takes_less_than_the_kernel(facts):
    for found in facts:
        for taken, whole in found["memory"].values():
            assert taken < 0.6  # of the kernel, on a device that has a quarter of it
            assert not whole


@NEEDS_ORBAX
def test_orbax_resumes_bit_for_bit(facts):
    for found in facts:
        assert found["orbax"] == dict.fromkeys(found["orbax"], True)
        assert "resumed" in found["orbax"]


@NEEDS_ORBAX
@pytest.mark.filterwarnings("ignore:Use `metadata` instead")
def test_an_orbax_folder_of_two_hosts_is_resumed_on_one(folder):
    model = worker.adapted()
    model.load_weights(folder / "orbax")
    saved, resumed = (
        np.load(folder / f"{name}_0.npz") for name in ("saved", "resumed")
    )
    for path, array in kr.get_adapter(model).items():
        np.testing.assert_array_equal(array, saved[path])
    worker.fit(model, None, 2)
    for path, array in kr.get_adapter(model).items():
        np.testing.assert_allclose(array, resumed[path], atol=ATOL)
        assert not np.array_equal(array, saved[path])


def test_quantized_kernels(facts):
    assert both(facts, "quantized", "restored")
    assert both(facts, "quantized", "merged False") == 0.0
    assert both(facts, "quantized", "merged True") < ATOL


REFUSALS = {
    "save": [r"ValueError: `save` of .* in one process what is divided over 2\."] * 2,
    "save_weights": [r"ValueError: `save_weights` of .* divided over 2\."] * 2,
    "another state": [r"ValueError: set_adapter .* in process 1 that differs"] * 2,
    "a lacking state": [
        r"RuntimeError: set_adapter failed in process 1, .* The adapter has no entry",
        r"ValueError: The adapter has no entry 'query/lambda'",
    ],
    "a lacking file": [r"FileNotFoundError: .* is not there for process 1, while"] * 2,
    "another file": [r"ValueError: .* is another file for process 1 than for"] * 2,
    "no place": [
        r"IsADirectoryError: ",
        r"RuntimeError: save_adapter to .* failed in process 0, .*IsADirectoryError",
    ],
    "taken": [
        r"ValueError: '.*taken.keras' exists already",
        r"RuntimeError: export_merged to .* failed in process 0, .* exists already",
    ],
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_the_processes_do_not_do_alike_is_refused_in_both(facts, what):
    for found, message in zip(facts, REFUSALS[what], strict=True):
        with pytest.raises(RuntimeError, match=message):
            raise RuntimeError(found["refusals"][what])


def test_a_verb_that_one_process_calls_alone_ends_with_an_error(facts):
    alone = facts[0]["refusals"]["alone"]
    assert "is for all 2 processes" in alone
    assert "Call it in every process" in alone


@pytest.mark.parametrize("what", ["adapted still", "after", "unchanged"])
def test_refusals_change_nothing_and_the_next_call_works(facts, what):
    assert both(facts, "refusals", what)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_while_saving(tmp_path, victim):
    ended = run_pair(tmp_path, victim, seconds=120)
    assert ended[victim].status == -9
    other = ended[1 - victim]
    assert other.status not in (0, None)
    assert "saved as if nothing were" not in other.printed
    former = np.load(tmp_path / f"former_{victim}.npz")
    found = read_adapter(tmp_path / "adapter.safetensors").tensors
    assert sorted(found) == sorted(former)
    for path, array in found.items():
        np.testing.assert_array_equal(array, former[path])


def test_one_process_asks_nobody():
    model = worker.adapted()
    assert hosts_of(model.variables) == Hosts()
    hosts = hosts_of(model.variables, divided=True)
    assert hosts.alone and hosts.writes
    assert hosts.told("nothing", "text") == "text"
    hosts.require_same("nothing", b"", "text")
    hosts.require_same_files("nothing", [Path("nowhere")])
