"""Fine-tuning methods by name: full fine-tuning, LoRA, RandLoRA, VeRA and others.

| name | what is trained |
|---|---|
| `full` | every weight |
| `head` | only the layers of `also_train` |
| `lora-R` | Keras's own LoRA of rank R |
| `randlora-R` | RandLoRA with bases of rank R |
| `randlora-as-lora-R` | RandLoRA with about as many parameters as LoRA-R |
| `randlora-R-nN` | N bases only: an update of rank N·R |
| `randlora-R-BASIS` | other bases: `kronecker`, …; `ternary100`: of sparsity 100 |
| `vera-R` | one basis of rank R, which is VeRA's budget |

A `:N` at the end of a RandLoRA or VeRA sets `alpha` to N times the rank, as in
`randlora-8:2`; by default it is 20 times the rank.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

import keras_randlora as kr
from keras_randlora.adapt import Selection, select
from keras_randlora.config import RandLoRAConfig

Adapter = Callable[[Selection, int, int], None]
_RANDLORA = re.compile(
    r"randlora-(?:as-lora-(?P<lora>\d+)|(?P<rank>\d+))"
    r"(?:-n(?P<num_bases>\d+))?(?:-(?P<basis>[a-z_]+)(?P<sparsity>\d+)?)?"
    r"(?::(?P<scale>\d+))?"
)
_VERA = re.compile(r"vera-(?P<rank>\d+)(?::(?P<scale>\d+))?")
_RANKED = re.compile(r"(?P<kind>\w+)-(?P<rank>\d+)")


def lora(selection: Selection, rank: int, seed: int) -> None:
    """Put Keras's own LoRA on the selected layers.

    keras-hub's `enable_lora` knows the default names only.
    """
    for site in selection.adapted:
        site.layer.enable_lora(rank)


def adapt(
    model: keras.Model,
    method: str,
    *,
    targets: Any = "all-linear",
    exclude: Sequence[str] = (),
    also_train: Sequence[str] = (),
    seed: int = 0,
    others: Mapping[str, Adapter] | None = None,
) -> int:
    """Prepare a plain model for a method; return the number of trainable parameters.

    Args:
        model: A built, plain model; changed in place.
        method: A name of the table above, or one of `others` with a rank.
        targets: The layers to adapt, as in `enable_randlora`.
        exclude: Likewise.
        also_train: Layers that are fully trained, such as a new head.
        seed: Of the random bases.
        others: More kinds of adapters: `{"dora": …}` for `dora-R`, called with the
            selected layers, the rank and the seed once everything is frozen.

    Raises:
        ValueError: There is no such method.
    """
    where = dict(targets=targets, exclude=list(exclude), also_train=list(also_train))
    adapters = {"lora": lora, **(others or {})}
    if method == "full":
        pass
    elif method == "head":
        _freeze(model, where)
    elif match := _RANDLORA.fullmatch(method):
        options = _randlora_options(model, match, where)
        kr.enable_randlora(model, seed=seed, **options, **where)
    elif match := _VERA.fullmatch(method):
        options = _scaled(int(match["rank"]), match)
        kr.enable_randlora(model, num_bases=1, seed=seed, **options, **where)
    elif (match := _RANKED.fullmatch(method)) and match["kind"] in adapters:
        adapters[match["kind"]](_freeze(model, where), int(match["rank"]), seed)
    else:
        raise ValueError(
            "A method is full, head, vera-R, randlora-R[-nN][-BASIS], "
            f"randlora-as-lora-R, or one of {sorted(adapters)} with a rank. "
            f"Received: {method!r}."
        )
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def _randlora_options(
    model: keras.Model, match: re.Match[str], where: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of `enable_randlora` in the name of a method."""
    options: dict[str, Any] = {"basis": match["basis"] or "uniform"}
    for name in ("num_bases", "sparsity"):
        if match[name]:
            options[name] = int(match[name])
    if match["lora"]:
        rank = kr.rank_like_lora(
            model, int(match["lora"]), where["targets"], exclude=where["exclude"]
        )
    else:
        rank = int(match["rank"])
    return options | _scaled(rank, match)


def _scaled(rank: int, match: re.Match[str]) -> dict[str, Any]:
    """Return the rank, and alpha if the name of the method has a scale."""
    return {"rank": rank, "alpha": match["scale"] and rank * int(match["scale"])}


def _freeze(model: keras.Model, where: Mapping[str, Any]) -> Selection:
    """Freeze all but the layers that are fully trained; return the selection."""
    selection = select(model, RandLoRAConfig(**where))
    for variable in model.weights:
        variable.trainable = False
    for site in selection.also_trained:
        for variable in site.layer.weights:
            variable.trainable = True
    return selection
