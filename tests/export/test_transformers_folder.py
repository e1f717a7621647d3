"""Tied weights stand once in a folder for transformers."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_randlora.export import transformers_folder

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize("chunk", [4, 2**24])
@pytest.mark.parametrize("names", ["abh", "hab", "ahb"])
def test_a_copy_goes(tmp_path, monkeypatch, names, chunk):
    monkeypatch.setattr(transformers_folder, "_CHUNK", chunk)
    rng = np.random.default_rng(0)
    # safetensors orders by name, so the places vary with the names.
    head, other, embedding = (f"{names.index(name)}" for name in "hab")
    table = rng.standard_normal((5, 3)).astype("float32")
    tensors = {
        embedding: table,
        other: rng.standard_normal((5, 3)).astype("float32"),
        head: table.copy(),
    }
    file = tmp_path / "m.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    before = file.stat().st_size
    transformers_folder.drop_copy(file, head)
    assert before - file.stat().st_size > table.nbytes
    del tensors[head]
    loaded = load_file(file)
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(loaded[name], array)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("name", ["head", "no such name"])
def test_what_differs_stays(tmp_path, name):
    tensors = {"head": np.ones((5, 3), "float32"), "table": np.ones((5, 3), "float32")}
    tensors["table"][-1, -1] = 2
    file = tmp_path / "m.safetensors"
    save_file(tensors, file)
    before = file.read_bytes()
    transformers_folder.drop_copy(file, name)
    assert file.read_bytes() == before
