"""Case of one worker: a method of fine-tuning, on one model and backend."""

import argparse
import dataclasses
import json
from typing import Any

BACKENDS = ("torch", "jax", "tensorflow")
REFERENCES = ("keras-lora", "peft-lora")
COMPUTES = ("auto", "materialized", "factored")
ALL_LINEAR = "all-linear"


@dataclasses.dataclass(frozen=True)
class Case:
    """One method on one model and backend.

    Attributes:
        backend: Keras's backend; `"torch"` for the methods of PEFT.
        method: See `parse_method`.
        model: A key of `benchmarks.models.MODELS`.
        targets: `("all-linear",)` or names of layers in keras-hub.
        batch: Sequences in a step.
        length: Tokens in a sequence.
        rank: Rank of RandLoRA's bases, ours and PEFT's.
        lora_rank: Rank of LoRA, Keras's and PEFT's.
        dtype: dtype of the weights and of the arithmetic.
        threads: Threads that a step may use.
        device: `"cpu"` or `"gpu"`.
    """

    backend: str
    method: str
    model: str
    targets: tuple[str, ...] = (ALL_LINEAR,)
    batch: int = 8
    length: int = 256
    rank: int = 32
    lora_rank: int = 16
    dtype: str = "float32"
    threads: int = 2
    device: str = "cpu"

    @property
    def tokens(self) -> int:
        """Tokens in a step."""
        return self.batch * self.length

    @property
    def is_peft(self) -> bool:
        """Whether transformers and PEFT run this case."""
        return self.method.startswith("peft-")

    def to_json(self) -> str:
        """Return the case as one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Case":
        """Return the case that `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "targets": tuple(values["targets"])})


@dataclasses.dataclass(frozen=True)
class RandLoRAMethod:
    """The options in the name of one of our methods."""

    basis: str
    compute: str = "auto"
    basis_storage: str = "stored"

    def options(self) -> dict[str, Any]:
        """Return the options of `enable_randlora`; ternary has 98 % zeros."""
        sparsity = {"sparsity": 100} if self.basis == "ternary" else {}
        return {**dataclasses.asdict(self), **sparsity}


def parse_method(name: str) -> str | RandLoRAMethod:
    """Parse a method's name.

    `full`, `keras-lora`, `peft-lora`, `peft-randlora` are returned unchanged;
    `randlora-BASIS[-COMPUTE][-regenerated]` as our options.

    Raises:
        ValueError: There is no such method.
    """
    if name in ("full", "peft-randlora", *REFERENCES):
        return name
    ours, *parts = name.split("-")
    if ours == "randlora" and parts:
        basis, *rest = parts
        stored = "regenerated" not in rest
        computes = [part for part in rest if part != "regenerated"] or ["auto"]
        if len(computes) == 1 and computes[0] in COMPUTES:
            storage = "stored" if stored else "regenerated"
            return RandLoRAMethod(basis, computes[0], storage)
    raise ValueError(
        "A method is full, keras-lora, peft-lora, peft-randlora or "
        f"randlora-BASIS[-COMPUTE][-regenerated]. Received: {name!r}."
    )


def method_name(name: str) -> str:
    """Return the name of a method from a command line."""
    try:
        parse_method(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name


def batch_shape(text: str) -> tuple[int, int]:
    """Return sequences and length of `8x256`, or of `2048` in sequences of 256."""
    try:
        if "x" in text:
            batch, length = map(int, text.split("x"))
        else:
            length = min(256, int(text))
            batch = int(text) // length
    except (ValueError, ZeroDivisionError):
        batch = length = 0
    if batch < 1 or length < 1:
        raise argparse.ArgumentTypeError(
            f"tokens are given as 2048 or 8x256. Received: {text!r}"
        )
    return batch, length


def layer_names(text: str) -> tuple[str, ...]:
    """Return the targets in `all-linear` or `query,value`."""
    return tuple(text.split(","))
