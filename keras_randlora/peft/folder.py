"""The two files of a PEFT RandLora adapter folder, as NumPy arrays and JSON.

| file | content |
|---|---|
| `adapter_config.json` | the options: `r`, `randlora_alpha`, `target_modules`, … |
| `adapter_model.safetensors` | λ, γ of each module, fully trained modules, the bases |

λ is `base_model.model.<module>.randlora_lambda` `(r, n)`, γ `….randlora_gamma`
`(n, s)`. A is `randlora_A` `(r, 1, s_max)`, B is `randlora_B` `(l_max, n_max, r)`;
flattened to `(l_max, n_max * r)`, B has the columns in the order of
`keras_randlora.update.formula`. PEFT writes both below each module and once more below
`base_model`, and reads them from any one module; here they are written below the first.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (teaches NumPy bfloat16)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from keras_randlora.tools import replacing

Bases = tuple[np.ndarray, np.ndarray]

CONFIG_NAME = "adapter_config.json"
TENSORS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
BIASES = ("none", "randlora_only")
_PREFIX = "base_model.model."
_LAMBDA, _GAMMA = ".randlora_lambda", ".randlora_gamma"
_BASIS_A, _BASIS_B = "randlora_A", "randlora_B"
_BIAS = ".base_layer.bias"


class PeftFolder(NamedTuple):
    """The content of an adapter folder; all arrays are float32.

    Attributes:
        config: The content of `adapter_config.json`.
        factors: λ of shape `(r, n)` and γ of shape `(n, s)` by module.
        biases: Trained biases of these modules, by module.
        weights: Tensors of fully trained modules, by `<module>.<tensor>`.
        bases: A of shape `(r, s_max)` and B of shape `(l_max, n_max * r)`; `None` if
            the folder was saved without.
    """

    config: dict[str, Any]
    factors: dict[str, Bases]
    biases: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    bases: Bases | None

    @property
    def rank(self) -> int:
        """The rank `r`."""
        return self.config["r"]

    @property
    def bias(self) -> str:
        """Which biases were trained, one of `BIASES`."""
        return self.config.get("bias", "none")


def read_folder(path: Path) -> PeftFolder:
    """Read and check an adapter folder.

    Raises:
        ValueError: It is damaged, of another method than RandLora, or holds
            something that is not supported, named in the message.
        FileNotFoundError: A file is missing.
    """
    config = _read_config(path)
    tensors = _read_tensors(path)
    bases = _take_bases(path, tensors)
    factors, biases, weights = {}, {}, {}
    for name, array in tensors.items():
        module = name.removeprefix(_PREFIX)
        if name.endswith(_LAMBDA):
            gamma = name.removesuffix(_LAMBDA) + _GAMMA
            if gamma not in tensors:
                raise ValueError(f"'{path}' lacks the tensor '{gamma}'.")
            factors[module.removesuffix(_LAMBDA)] = array, tensors[gamma]
        elif name.endswith(_BIAS):
            biases[module.removesuffix(_BIAS)] = array
        elif not name.endswith(_GAMMA):
            weights[module] = array
        elif (lambda_ := name.removesuffix(_GAMMA) + _LAMBDA) not in tensors:
            raise ValueError(f"'{path}' lacks the tensor '{lambda_}'.")
    if not factors:
        raise ValueError(f"'{path}' adapts no module: it holds no 'randlora_lambda'.")
    return PeftFolder(config, factors, biases, weights, bases)


def write_folder(path: Path, folder: PeftFolder) -> None:
    """Save an adapter folder, atomically.

    A folder at `path` is replaced.

    Raises:
        OSError: It cannot be written.
    """
    config = json.dumps(folder.config, indent=2, sort_keys=True)
    tensors = {n: np.ascontiguousarray(a) for n, a in _named_tensors(folder)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as place:
        written = Path(place)
        written.mkdir()
        _write_file(written / CONFIG_NAME, config.encode())
        data = serialize(tensors, metadata={"format": "pt"})
        _write_file(written / TENSORS_NAME, data)


def require_free(path: Path, overwrite: bool) -> None:
    """Check that an adapter folder may be written to `path`.

    Raises:
        FileExistsError: There is something else than an adapter folder, or `overwrite`
            is false.
    """
    if not path.exists():
        return
    entries = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else [""]
    if entries and not overwrite:
        raise FileExistsError(
            f"'{path}' exists. Choose another place, or pass overwrite=True to replace "
            "the adapter folder in it."
        )
    others = [name for name in entries if name not in (CONFIG_NAME, TENSORS_NAME)]
    if others:
        found = f"It holds '{others[0]}'." if others[0] else "It is a file."
        raise FileExistsError(
            f"'{path}' is more than an adapter folder and is not replaced. {found}"
        )


def draw_bases(config: dict[str, Any], smaller: int, larger: int) -> Bases:
    """Draw the bases of a folder without any, as PEFT does on this machine.

    Args:
        config: The content of `adapter_config.json`.
        smaller: Columns of A.
        larger: Rows of B.

    Returns:
        A of shape `(r, smaller)` and B of shape `(larger, n * r)`, float32.

    Raises:
        ModuleNotFoundError: PyTorch, whose generator draws them, is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise ModuleNotFoundError(
            "The adapter was saved without its bases (save_projection=False). PEFT "
            "draws them with PyTorch, which is not installed. Install torch, or save "
            "the adapter with save_projection=True."
        ) from error
    rank, seed = config["r"], config.get("projection_prng_key", 0)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    no_bfloat16 = torch.cuda.is_available() and not torch.cuda.is_bf16_supported()
    half = torch.float16 if no_bfloat16 else torch.bfloat16

    def dense(*shape: int) -> Any:
        empty = torch.empty(shape, dtype=half)
        slope = math.sqrt(5)
        return torch.nn.init.kaiming_uniform_(empty, a=slope, generator=generator)

    def ternary(*shape: int) -> Any:
        words = torch.rand(shape, generator=generator)
        edge = 1 / (2 * (math.sqrt(smaller) if config.get("very_sparse") else 3))
        return (words > 1 - edge).float() - (words < edge).float()

    num_bases = math.ceil(smaller / rank)
    if config.get("sparse") or config.get("very_sparse"):
        a, b = ternary(rank, 1, smaller), ternary(larger, num_bases, rank)
    else:
        a = dense(rank, 1, smaller)
        b = torch.cat([dense(larger, 1, rank) for _ in range(num_bases)], dim=1)
    basis_a, basis_b = ((x / x.std()).float().numpy() for x in (a, b))
    return _flat(basis_a, basis_b)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / CONFIG_NAME
    if not file.is_file():
        raise FileNotFoundError(f"There is no PEFT adapter: no file '{file}'.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, rank = config["peft_type"], config["r"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{file}' is not a PEFT configuration: {error!r}.") from error
    if kind != "RANDLORA":
        raise ValueError(
            f"'{path}' holds an adapter of type {kind}. `keras_randlora.peft` reads "
            "those of PEFT's RandLora (RANDLORA)."
        )
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"'{file}' must give a positive integer `r`. It has r={rank}.")
    if config.get("bias", "none") not in BIASES:
        raise ValueError(
            f"'{path}' was trained with bias={config['bias']!r}, which also trains "
            "biases of modules that are not adapted. Train with bias='none' or "
            "'randlora_only'."
        )
    return config


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors as float32, the bases once."""
    file = path / TENSORS_NAME
    if not file.is_file():
        pickled = (path / PICKLE_NAME).is_file()
        remedy = f" '{PICKLE_NAME}' is a pickle: save with safe_serialization=True."
        raise FileNotFoundError(
            f"There is no file '{file}'.{remedy if pickled else ''}"
        )
    try:
        with safe_open(file, framework="numpy") as opened:
            tensors = {
                name: opened.get_tensor(name).astype("float32")
                for name in _bases_once(opened.keys())
            }
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise ValueError(
            f"'{file}' is not a readable safetensors file ({error}). It may be "
            "truncated or damaged."
        ) from error
    for name, array in tensors.items():
        if not np.all(np.isfinite(array)):
            raise ValueError(f"'{file}' holds values that are not finite in '{name}'.")
    return tensors


def _bases_once(names: Iterable[str]) -> list[str]:
    """Return the names without repeated bases."""
    kept = {}
    for name in names:
        last = name.rpartition(".")[2]
        kept[last if last in (_BASIS_A, _BASIS_B) else name] = name
    return list(kept.values())


def _take_bases(path: Path, tensors: dict[str, np.ndarray]) -> Bases | None:
    """Remove the bases from the tensors and return them."""
    found = {
        name: tensors.pop(key)
        for key in list(tensors)
        for name in (_BASIS_A, _BASIS_B)
        if key.endswith(f".{name}")
    }
    if not found:
        return None
    shapes = {name: array.shape for name, array in found.items()}
    sizes = shapes.get(_BASIS_A, ()), shapes.get(_BASIS_B, ())
    if [len(shape) for shape in sizes] != [3, 3] or sizes[0][1] != 1:
        raise ValueError(
            f"'{path}' must hold {_BASIS_A} of shape (r, 1, s) and {_BASIS_B} of shape "
            f"(l, n, r). It holds {shapes}."
        )
    return _flat(found[_BASIS_A], found[_BASIS_B])


def _named_tensors(folder: PeftFolder) -> Iterable[tuple[str, np.ndarray]]:
    for module, (lambda_, gamma) in folder.factors.items():
        yield f"{_PREFIX}{module}{_LAMBDA}", lambda_
        yield f"{_PREFIX}{module}{_GAMMA}", gamma
    for module, bias in folder.biases.items():
        yield f"{_PREFIX}{module}{_BIAS}", bias
    for name, array in folder.weights.items():
        yield f"{_PREFIX}{name}", array
    if folder.bases is not None:
        basis_a, basis_b = folder.bases
        first = next(iter(folder.factors))
        yield f"{_PREFIX}{first}.{_BASIS_A}", basis_a[:, None]
        shape = len(basis_b), -1, folder.rank
        yield f"{_PREFIX}{first}.{_BASIS_B}", basis_b.reshape(shape)


def _write_file(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flat(basis_a: np.ndarray, basis_b: np.ndarray) -> Bases:
    """Turn `(r, 1, s)` and `(l, n, r)` into `(r, s)` and `(l, n * r)`."""
    return basis_a[:, 0], basis_b.reshape(len(basis_b), -1)
