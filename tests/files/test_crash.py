"""A crash or damage costs neither the former file nor the model."""

import os
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from backend import assert_same_arrays
from models import EXAMPLES, randomize, structure_of

import keras_randlora as kr

pytestmark = [pytest.mark.any_backend, pytest.mark.usefixtures("quick_processes")]

WORKER = Path(__file__).parents[1] / "crash_worker.py"
KILLS = 50
MUTATIONS = 2000


@pytest.fixture
def adapter_file(tmp_path):
    """Write an adapter file and return its path."""
    model = EXAMPLES["mlp"].build()
    model.enable_randlora(rank=3, targets="all-linear")
    randomize(model, scale=1.0, seed=0)
    kr.save_adapter(model, tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


def test_sigkill_while_saving_leaves_a_whole_file(adapter_file, tmp_path):
    model = EXAMPLES["mlp"].build()
    model.enable_randlora(rank=3, targets="all-linear")
    other, target = tmp_path / "other.safetensors", tmp_path / "target.safetensors"
    kr.save_adapter(model, other)
    files = map(str, (adapter_file, other, target))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(WORKER), *files, str(KILLS)],
        env={**os.environ, "PYTHONPATH": str(WORKER.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    counts = [int(count) for count in result.stdout.split()]
    assert sum(counts) == KILLS
    assert min(counts) > 0  # the writers wrote


def mutate(data, rng):
    """Return a damaged copy: cut, flipped, overwritten, doubled, or misheaded."""
    data = bytearray(data)
    kind = rng.randrange(6)
    place = rng.randrange(len(data))
    if kind == 0:
        del data[place:]
    elif kind == 1:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 2:
        length = rng.randrange(1, 64)
        data[place : place + length] = rng.randbytes(length)
    elif kind == 3:
        data[place:place] = data[place : place + rng.randrange(1, 256)]
    elif kind == 4:
        data[:8] = struct.pack("<Q", rng.choice([0, 2, len(data), 2**31, 2**63]))
    else:
        digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
        data[rng.choice(digits)] = ord(rng.choice("0123456789"))
    return bytes(data)


def test_fuzzed_files_change_nothing(adapter_file, tmp_path):
    good = adapter_file.read_bytes()
    model = EXAMPLES["mlp"].build()
    before = structure_of(model)
    damaged = tmp_path / "damaged.safetensors"
    rng = random.Random(0)
    refused = 0
    tracemalloc.start()
    for number in range(MUTATIONS):
        mutated = mutate(good, rng)
        damaged.write_bytes(mutated)
        try:
            kr.load_adapter(model, damaged)
        except ValueError as error:
            assert str(damaged) in str(error), f"mutation {number}"
            refused += 1
        else:  # the damage hit nothing that counts
            loaded = kr.get_adapter(model)
            kr.disable_randlora(model)
            kr.load_adapter(model, adapter_file)
            assert_same_arrays(loaded, kr.get_adapter(model))
            kr.disable_randlora(model)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert structure_of(model) == before
    assert refused > 0.9 * MUTATIONS
    assert peak < 64 * 2**20


def test_pickle_is_refused_unread(tmp_path):
    class Explosive:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    path = tmp_path / "adapter.safetensors"
    path.write_bytes(pickle.dumps(Explosive()))
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        kr.load_adapter(EXAMPLES["mlp"].build(), path)
    assert not (tmp_path / "exploded").exists()
