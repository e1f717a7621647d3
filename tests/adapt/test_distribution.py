"""Adapters trained over several devices are those trained on one."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from distribution_worker import RUNS
from models import EXAMPLES as MODELS
from models import structure_of
from processes import ON_CPU, free_port, run_together
from safetensors.numpy import load_file
from versions import KERAS

import keras_randlora as kr

BACKEND = keras.backend.backend()
WORKER = Path(__file__).parents[1] / "distribution_worker.py"
EXAMPLE_WORKER = WORKER.with_name("example_worker.py")
DEVICES = "--xla_force_host_platform_device_count={}"
EIGHT_DEVICES = DEVICES.format(8)
COMPILE_FAST = os.environ["XLA_FLAGS"]  # of conftest.py
RTOL = 1e-5

pytestmark = [pytest.mark.long_setup, pytest.mark.usefixtures("quick_processes")]
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution is for JAX")
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="of tf.distribute")
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="of torch.distributed")


def run(*command, **environment):
    """Run a Python program in a process of its own and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", *map(str, command)],
        env={**os.environ, **ON_CPU, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


# keras.distribution on JAX


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """Train over eight simulated devices in every way, and on one."""
    folder = tmp_path_factory.mktemp("distribution")
    dump = f"--xla_dump_to={folder / 'steps'} --xla_dump_hlo_module_re=.*train_step.*"
    run(WORKER, folder, XLA_FLAGS=f"{EIGHT_DEVICES} {COMPILE_FAST} {dump}")
    return json.loads((folder / "facts.json").read_text())


distributed = pytest.mark.parametrize(
    "name", [name for name in RUNS if RUNS[name].distribution]
)


@on_jax
@distributed
def test_losses_are_those_of_one_device(facts, name):
    alone, spread = facts[RUNS[name].family], facts[name]
    np.testing.assert_allclose(spread["losses"], alone["losses"], rtol=RTOL)
    assert alone["losses"][-1] < (1 - 100 * RTOL) * alone["losses"][0]


@on_jax
@distributed
def test_variables_lie_where_they_belong(facts, name):
    assert facts[name]["misplaced before"] == []
    assert facts[name]["misplaced after"] == []
    assert facts[name]["misplaced when loaded"] == []


@on_jax
@distributed
def test_a_loaded_adapter_is_the_saved_one(facts, name):
    assert facts[name]["loaded differently"] == []


@on_jax
@pytest.mark.parametrize(
    "name", [name for name in RUNS if RUNS[name].distribution in ("model", "sharded")]
)
def test_no_device_holds_or_gathers_a_whole_kernel(facts, name):
    assert facts[name]["whole"] == []
    assert facts[name]["gathered"] == []


@on_jax
def test_a_gamma_that_the_mesh_does_not_divide_is_refused(facts):
    assert "dense/randlora/gamma' of shape (3, 6)" in facts["refusal"]
    assert "`keras_randlora.layout_map`" in facts["refusal"]


@on_jax
def test_large_bases_are_those_drawn(facts):
    assert facts["large bases are drawn"]


# The layout map


def mesh():
    return keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])


LAMBDA = "block_0/query/randlora/lambda"
GAMMA = "block_0/query/randlora/gamma"
BASES = [f"randlora_bank/basis_{name}" for name in ("a", "b", "left", "right")]


def axes(layout_map, path):
    """Return the axes of a path's layout."""
    return tuple(layout_map[path].axes)


@pytest.fixture
def base_map():
    """Give a base's map with a pattern that matches adapters too."""
    base_map = keras.distribution.LayoutMap(mesh())
    base_map[".*query.*"] = ("model", "batch", None)
    base_map["embedding/embeddings"] = ("model", None)
    return base_map


def test_the_base_keeps_its_layouts(base_map):
    extended = kr.layout_map(base_map)
    assert axes(extended, "block_0/query/kernel") == ("model", "batch", None)
    assert axes(extended, "embedding/embeddings") == ("model", None)
    assert extended["block_0/norm/scale"] is None
    assert list(extended)[:2] == list(base_map)


def test_adapters_and_bases_are_replicated_whatever_the_base_matches(base_map):
    extended = kr.layout_map(base_map)
    for path in (LAMBDA, GAMMA, *BASES, f"block_0/{BASES[0]}"):
        assert axes(extended, path) == (None, None)


def test_the_outputs_of_an_adapter_have_no_layout(base_map):
    assert kr.layout_map(base_map)["block_0/query/randlora/dropout"] is None


def test_gamma_and_basis_b_can_be_sharded(base_map):
    extended = kr.layout_map(base_map, shard_over="model")
    found = {path: axes(extended, path) for path in (LAMBDA, GAMMA, *BASES)}
    assert found.pop(GAMMA) == (None, "model")
    assert found.pop("randlora_bank/basis_b") == ("model", None)
    assert set(found.values()) == {(None, None)}


def test_a_pattern_that_names_the_adapter_counts(base_map):
    base_map[".*/randlora/gamma"] = ("batch", None)
    extended = kr.layout_map(base_map, shard_over="model")
    assert axes(extended, GAMMA) == ("batch", None)
    assert axes(extended, LAMBDA) == (None, None)


def test_extending_twice_changes_nothing(base_map):
    base_map[".*/randlora/.*"] = (None, None)
    base_map[".*key/randlora/gamma"] = ("batch", None)
    once = kr.layout_map(base_map, shard_over="model")
    twice = kr.layout_map(once)
    assert list(twice.items()) == list(once.items())
    assert axes(twice, ".*key/randlora/gamma") == ("batch", None)


def test_the_base_map_is_left_alone(base_map):
    kr.layout_map(base_map)
    assert len(base_map) == 2


def test_a_layout_map_is_required():
    with pytest.raises(TypeError, match=r"must be a `keras.distribution.LayoutMap`"):
        kr.layout_map({".*kernel": (None, "model")})


def test_an_unknown_axis_is_refused(base_map):
    message = r"one of \['batch', 'model'\]\. Received: shard_over='data'"
    with pytest.raises(ValueError, match=message):
        kr.layout_map(base_map, shard_over="data")


class Experts(keras.layers.Layer):
    """Two matrices, one for each expert."""

    def build(self, input_shape):
        self.bank = self.add_weight(name="bank", shape=(2, input_shape[-1], 3))

    def call(self, inputs):
        return keras.ops.einsum("bi,eio->beo", inputs, self.bank)


@on_jax
@pytest.mark.parametrize("shared", ["none", "gamma"])
@pytest.mark.parametrize("shard_over", [None, "batch"])
def test_experts_lie_where_their_bank_does(shared, shard_over):
    banks = keras.distribution.LayoutMap(mesh())
    banks["(.*/)?experts/bank"] = ("model", None, None)
    extended = kr.layout_map(banks, shard_over=shard_over)
    distribution = keras.distribution.ModelParallel(layout_map=extended)
    with distribution.scope():
        model = keras.Sequential([keras.Input((4,)), Experts(name="experts")])
        for _ in range(2):  # a second time the entries are there
            kr.enable_randlora(
                model,
                rank=2,
                targets="bank",
                weight_axes={"bank": "batch in out"},
                shared_in_batch=shared,
            )
            layouts = {
                weight.name: distribution.get_variable_layout(weight)
                for weight in model.trainable_weights
            }
            kr.disable_randlora(model)
    # Before Keras 3.15 they are layouts of JAX.
    found = {
        name: tuple(layout.spec if KERAS < (3, 15) else layout.axes)
        for name, layout in layouts.items()
    }
    experts = "model" if shared == "none" else None
    assert found["lambda"] == ("model", None, None)
    assert found["gamma"] == (experts, None, shard_over)


# What cannot work is refused, and the model is left alone


@on_jax
def test_enabling_outside_the_distribution_is_refused():
    with keras.distribution.DataParallel(devices=["cpu:0"]).scope():
        model = MODELS["mlp"].build()
    before = structure_of(model)
    with pytest.raises(ValueError, match=r"hidden_1.*`with distribution\.scope\(\):`"):
        model.enable_randlora(2, "all-linear")
    assert structure_of(model) == before


@on_jax
def test_a_layout_of_another_rank_is_refused(base_map):
    with keras.distribution.ModelParallel(layout_map=base_map).scope():
        inputs = keras.Input((4,))
        query = keras.layers.EinsumDense("ab,bcd->acd", (2, 3), name="query")
        model = keras.Model(inputs, query(inputs))
        before = structure_of(model)
        message = r"'query/randlora/lambda' of .*`keras_randlora\.layout_map`"
        with pytest.raises(ValueError, match=message):
            model.enable_randlora(2, "query")
        assert structure_of(model) == before


@on_tensorflow
@pytest.mark.parametrize("mirrored_first", [True, False])
def test_enabling_under_another_strategy_is_refused(mirrored_first):
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    scopes = [strategy.scope(), contextlib.nullcontext()]
    building, enabling = scopes if mirrored_first else scopes[::-1]
    with building:
        model = MODELS["mlp"].build()
    before = structure_of(model)
    with enabling, pytest.raises(ValueError, match=r"the same `with strategy\.scope\("):
        model.enable_randlora(2, "all-linear")
    assert structure_of(model) == before


# The examples, which are also how TensorFlow and torch are tested

OPTIONS = ("--steps", 3, "--batch-size", 8, "--sequence-length", 16)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
ONE_PROCESS = (*TORCHRUN, 1)
STEP = re.compile(r"steps: (\d+)  mean loss: ([\d.]+)")


class Trained(NamedTuple):
    """The losses of an example, the file it saved, and each replica's adapter."""

    losses: list[float]
    saved: dict
    replicas: list[dict]


def command_of(example, folder, *options):
    """Return the command that runs an example, and the file that it saves."""
    output = folder / "adapter.safetensors"
    arguments = (example, folder, *OPTIONS, "--output", output, *options)
    return (EXAMPLE_WORKER, *arguments), output


def trained(printed, folder, output):
    """Return what a run that printed this has left in the folder."""
    replicas = [dict(np.load(path)) for path in sorted(folder.glob("replica_*.npz"))]
    losses = [float(loss) for _, loss in STEP.findall(printed)]
    return Trained(losses, load_file(output), replicas)


def train(example, folder, *options, launcher=(), **environment):
    """Run an example with Python, or with what launches several processes."""
    folder.mkdir()
    command, output = command_of(example, folder, *options)
    printed = run(*launcher, *command, **environment)
    assert (folder / "saved").read_text() == "1"
    return trained(printed, folder, output)


def train_over_two_hosts(example, folder, *options, launchers=((), ()), environments):
    """Run an example twice at the same time, as two hosts do."""
    folder.mkdir()
    command, output = command_of(example, folder, *options)
    commands = [(*launcher, *command) for launcher in launchers]
    ended = run_together(commands, 240, environments)
    for one in ended:
        assert one.status == 0, one.printed[-5000:]
    found = [trained(one.printed, folder, output) for one in ended]
    speaking = [one for one in found if one.losses]
    for one in speaking[1:]:
        assert one.losses == speaking[0].losses
    return speaking[0]


def assert_same_training(spread, alone, devices):
    """Assert equal losses and adapters on several devices and on one."""
    assert len(alone.losses) == 3
    assert alone.losses[-1] < alone.losses[0]
    np.testing.assert_allclose(spread.losses, alone.losses, rtol=RTOL)
    assert (len(alone.replicas), len(spread.replicas)) == (1, devices)
    for trained in (alone, spread):
        for replica in trained.replicas:
            assert set(replica) == set(trained.saved)
            for path, array in trained.saved.items():
                np.testing.assert_array_equal(replica[path], array)


@pytest.fixture(scope="module")
def jax_alone(tmp_path_factory):
    """Run the JAX example on one device."""
    folder = tmp_path_factory.mktemp("alone") / "1"
    return train("distributed_jax", folder, XLA_FLAGS=COMPILE_FAST)


@on_jax
def test_the_jax_example(tmp_path, jax_alone):
    eight = f"{EIGHT_DEVICES} {COMPILE_FAST}"
    sharded = ("--model-parallel", 4)
    spread = train("distributed_jax", tmp_path / "8", *sharded, XLA_FLAGS=eight)
    assert_same_training(spread, jax_alone, 8)


@on_jax
def test_the_jax_example_over_two_hosts(tmp_path, jax_alone):
    common = {
        "XLA_FLAGS": f"{DEVICES.format(2)} {COMPILE_FAST}",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"localhost:{free_port()}",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
    }
    has_orbax = KERAS >= (3, 14)
    spread = train_over_two_hosts(
        "distributed_jax",
        tmp_path / "2",
        "--several-hosts",
        *("--model-parallel", 2),
        *(("--checkpoints", tmp_path / "orbax") if has_orbax else ()),
        environments=[
            {**common, "KERAS_DISTRIBUTION_PROCESS_ID": str(process), "RANK": str(rank)}
            for process, rank in ((0, 0), (1, 2))
        ],
    )
    assert_same_training(spread, jax_alone, 4)
    assert (tmp_path / "orbax" / "0" / "pytree").is_dir() == has_orbax


@on_tensorflow
def test_the_tensorflow_example(tmp_path):
    alone, spread = (
        train("distributed_tensorflow", tmp_path / str(count), "--cpu-devices", count)
        for count in (1, 2)
    )
    assert_same_training(spread, alone, 2)


@pytest.fixture(scope="module")
def torch_alone(tmp_path_factory):
    """Run the torch example in one process."""
    folder = tmp_path_factory.mktemp("alone") / "1"
    return train("distributed_torch", folder, launcher=ONE_PROCESS)


@on_torch
def test_the_torch_example(tmp_path, torch_alone):
    launcher = (*TORCHRUN, 2)
    spread = train("distributed_torch", tmp_path / "2", launcher=launcher)
    assert_same_training(spread, torch_alone, 2)


@on_torch
def test_the_torch_example_over_two_hosts(tmp_path, torch_alone):
    agent = (
        *("-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}"),
        *("--rdzv-id", "two-hosts", "--local-addr", "localhost"),
    )
    spread = train_over_two_hosts(
        "distributed_torch",
        tmp_path / "2",
        launchers=(agent, agent),
        environments=({}, {}),
    )
    assert (tmp_path / "2" / "saved").read_text() == "1"
    assert_same_training(spread, torch_alone, 2)
