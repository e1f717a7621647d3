"""The public names of the package, and those of each release."""

import inspect
from pathlib import Path

import keras_randlora as kr
from keras_randlora.methods import METHODS

RELEASED = Path(__file__).parent / "released"
FILE = "public_api.txt"


def current():
    """Return every public name, and every parameter as `name(parameter)`."""
    owners = {"": kr, "analysis.": kr.analysis}
    public = {
        f"{prefix}{name}": getattr(owner, name)
        for prefix, owner in owners.items()
        for name in owner.__all__
    }
    public |= {"peft.load": kr.peft.load, "peft.save": kr.peft.save}
    public |= {f"keras.Model.{name}": method for name, method in METHODS.items()}
    names = set()
    for name, value in public.items():
        names.add(name)
        if inspect.ismodule(value):
            continue
        names |= {f"{name}({p})" for p in inspect.signature(value).parameters}
        if inspect.isclass(value):
            names |= {f"{name}.{own}" for own in _members(value) if own[0] != "_"}
    return names


def _members(kind):
    """Return what a class and its bases in the package define."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith(kr.__name__)]
    return {name for base in ours for name in vars(base)}


def released():
    """Return the names of the newest release, empty before the first."""
    files = sorted(RELEASED.glob(f"*/{FILE}"), key=_version_of)
    return set(files[-1].read_text("utf-8").split()) if files else set()


def _version_of(file):
    return [int(number) for number in file.parent.name.split(".")]


def write(folder):
    """Write the names of this version."""
    (folder / FILE).write_text("\n".join(sorted(current())) + "\n", "utf-8")
