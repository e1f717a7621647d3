"""The README's Python runs, on tiny models in place of the presets it names."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tiny_presets
from versions import NEEDS_RANDOM_SAMPLERS

README = Path(__file__).parents[2] / "README.md"


def python_blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_readme_has_its_three_examples():
    assert len(python_blocks()) == 3


# keras-hub hands a `tf.data.Dataset` to `fit`, which warns about its own default.
@pytest.mark.usefixtures("quick_processes")
@NEEDS_RANDOM_SAMPLERS
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
def test_readme_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tiny_presets.install(monkeypatch)
    names = {"texts": tiny_presets.TEXTS}
    for block in python_blocks():
        exec(compile(block, str(README), "exec"), names)

    assert (tmp_path / "saved_model" / "saved_model.pb").is_file()
    trained, fresh = names["model"], names["fresh"]
    assert trained.randlora_summary().trainable == fresh.randlora_summary().trainable
    tokens = tiny_presets.TOKENS
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(trained(tokens)),
        keras.ops.convert_to_numpy(fresh(tokens)),
    )
    assert len(names["classifier"].trainable_weights) == 4
