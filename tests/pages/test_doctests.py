"""The examples in the docstrings run, and everything public has one."""

import doctest
import importlib
import inspect
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest

import keras_randlora as kr

# Need eight devices, a hub and a tokenizer: `test_distribution.py`, `test_hub.py` and
# `test_instruction.py` run the like.
UNTESTED = {"layout_map", "upload_adapter", "instruction_data", "instruction_prompt"}
PACKAGE = Path(kr.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if not path.stem.startswith("__")
)
NAMES = {"keras": keras, "keras_hub": keras_hub, "kr": kr, "np": np}
PUBLIC = {
    name: value
    for owner in (kr, kr.analysis)
    for name in owner.__all__
    if not inspect.ismodule(value := getattr(owner, name))
} | {"peft.load": kr.peft.load, "peft.save": kr.peft.save}


def found(module):
    """Return the examples of a module, one for each docstring that has any."""
    module = importlib.import_module(f"keras_randlora.{module}")
    finder = doctest.DocTestFinder(exclude_empty=True)
    globs = {**vars(module), **NAMES}
    return [test for test in finder.find(module, globs=globs) if test.examples]


@pytest.mark.parametrize("module", [name for name in MODULES if found(name)])
def test_examples(module, monkeypatch, tmp_path):
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for number, test in enumerate(found(module)):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
    assert runner.tries


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - UNTESTED))
def test_everything_public_has_an_example(name):
    assert ">>> " in inspect.getdoc(PUBLIC[name])


def test_a_wrong_example_is_seen():
    parser = doctest.DocTestParser()
    test = parser.get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(test, out=lambda text: None).failed == 1
