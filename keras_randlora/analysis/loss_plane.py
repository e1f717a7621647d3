"""The loss on the plane through three trained models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

Weights = Sequence[np.ndarray]


@dataclass(frozen=True)
class LossPlane:
    """Losses on a grid in the plane through three points in weight space.

    Attributes:
        names: Names of the three models.
        corners: Their coordinates in the plane, `(3, 2)`: the first is at the origin,
            the second on the first axis. Units are those of the weights.
        x: Grid coordinates on the first axis, `(columns,)`.
        y: Grid coordinates on the second axis, `(rows,)`.
        losses: The loss at each point of the grid, `(rows, columns)`.
        corner_losses: The loss of each of the three models, `(3,)`.

    Example:
    >>> names = ("LoRA", "RandLoRA", "full")
    >>> corners = {name: [row] for name, row in zip(names, np.eye(3), strict=True)}
    >>> loss = lambda weights: float(weights[0].sum())
    >>> plane = kr.analysis.loss_plane(corners, loss, resolution=3)
    >>> plane.names, plane.corners.round(2).tolist()
    (('LoRA', 'RandLoRA', 'full'), [[0.0, 0.0], [1.41, 0.0], [0.71, 1.22]])
    """

    names: tuple[str, str, str]
    corners: np.ndarray
    x: np.ndarray
    y: np.ndarray
    losses: np.ndarray
    corner_losses: np.ndarray


def loss_plane(
    models: Mapping[str, Weights],
    loss: Callable[[list[np.ndarray]], float],
    *,
    resolution: int = 15,
    margin: float = 0.3,
) -> LossPlane:
    """Evaluate the loss on the plane through the weights of three models.

    The plane is spanned as in Garipov et al. (2018), section 4: the first axis goes
    from the first model to the second, the other is orthogonal and goes to the third.
    RandLoRA's figure 4b shows it through LoRA, RandLoRA and full fine-tuning.

    Args:
        models: Three names and weights, each the `model.get_weights()` of the same
            plain architecture (adapters merged).
        loss: Returns the loss of such weights; `loss_of` builds one from a model.
        resolution: Points of the grid along each axis.
        margin: Extent of the grid beyond the triangle, as a share of its size.

    Raises:
        ValueError: There are not three models, their weights differ in shape, they lie
            on one line, or an option is out of range.

    Example:
    >>> points = {"a": [0.0, 0.0], "b": [2.0, 0.0], "c": [0.0, 1.0]}
    >>> corners = {name: [np.array(point)] for name, point in points.items()}
    >>> loss = lambda weights: float(weights[0] @ weights[0])
    >>> plane = kr.analysis.loss_plane(corners, loss, resolution=5)
    >>> plane.losses.shape, plane.corner_losses.tolist()
    ((5, 5), [0.0, 4.0, 1.0])
    """
    if len(models) != 3:
        raise ValueError(
            f"A plane goes through three models. Received: {len(models)}, "
            f"{sorted(models)}."
        )
    if resolution < 2 or not margin >= 0:
        raise ValueError(
            "`resolution` must be 2 at least and `margin` not negative. Received: "
            f"resolution={resolution}, margin={margin}."
        )
    shapes = {name: [np.shape(w) for w in weights] for name, weights in models.items()}
    first_name, *others = shapes
    for name in others:
        if shapes[name] != shapes[first_name]:
            raise ValueError(
                f"The weights of '{name}' and '{first_name}' differ in number or "
                "shape: merge adapters, and compare the same architecture."
            )
    origin, second, third = (_floats(weights) for weights in models.values())
    along = [b - a for a, b in zip(origin, second, strict=True)]
    across = [c - a for a, c in zip(origin, third, strict=True)]
    width = np.sqrt(_inner(along, along))
    if not width > 0:
        raise ValueError(f"'{first_name}' and '{others[0]}' have the same weights.")
    along = [u / width for u in along]
    shift = _inner(across, along)
    across = [v - shift * u for v, u in zip(across, along, strict=True)]
    height = np.sqrt(_inner(across, across))
    if not height > 1e-6 * width:
        raise ValueError(f"{list(models)} lie on one line, which spans no plane.")
    across = [v / height for v in across]

    def at(x: float, y: float) -> float:
        moved = zip(origin, along, across, strict=True)
        return float(loss([(o + x * u + y * v).astype("float32") for o, u, v in moved]))

    corners = np.array([[0.0, 0.0], [width, 0.0], [shift, height]])
    axes = [_ticks(corners[:, axis], resolution, margin) for axis in (0, 1)]
    return LossPlane(
        names=tuple(models),  # type: ignore[arg-type]
        corners=corners,
        x=axes[0],
        y=axes[1],
        losses=np.array([[at(x, y) for x in axes[0]] for y in axes[1]]),
        corner_losses=np.array([at(x, y) for x, y in corners]),
    )


def loss_of(
    model: keras.Model, x: Any, y: Any = None, **options: Any
) -> Callable[[list[np.ndarray]], float]:
    """Return a function from weights to a compiled model's loss on the data.

    Args:
        model: A plain compiled model. Each call of the function sets its weights.
        x: As in `model.evaluate`.
        y: Likewise.
        **options: Likewise: `batch_size`, `sample_weight`, ….

    Example:
    >>> model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="d")])
    >>> model.compile(loss="mse")
    >>> loss = kr.analysis.loss_of(model, np.ones((8, 6)), np.ones((8, 4)))
    >>> loss([np.zeros((6, 4)), np.zeros(4)])
    1.0
    """

    def loss(weights: list[np.ndarray]) -> float:
        model.set_weights(weights)
        return model.evaluate(x, y, verbose=0, return_dict=True, **options)["loss"]

    return loss


def _floats(weights: Weights) -> list[np.ndarray]:
    return [np.asarray(w, "float64") for w in weights]


def _inner(first: Weights, second: Weights) -> float:
    pairs = zip(first, second, strict=True)
    return float(sum(np.vdot(a, b) for a, b in pairs))


def _ticks(corners: np.ndarray, resolution: int, margin: float) -> np.ndarray:
    room = margin * np.ptp(corners)
    return np.linspace(corners.min() - room, corners.max() + room, resolution)
