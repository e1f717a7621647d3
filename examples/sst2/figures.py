"""Spectra, CKA and loss landscape of three methods from one start (paper, figure 4)."""

from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

import keras_randlora as kr
from benchmarks.report import markdown, number
from examples.sst2 import data, train
from examples.sst2.train import HEAD
from keras_randlora.adapt import sites
from keras_randlora.tools.keras_internals import own_variables

Weights = list[np.ndarray]
BEFORE = "before training"


class Trained(NamedTuple):
    """The compared models, all as weights of one plain model.

    Attributes:
        plain: A model without adapters, whose weights are set in turn.
        start: The weights before training, the same for every method.
        kernels: The kernels before training, by layer path.
        weights: The weights after training, by method.
    """

    plain: keras.Model
    start: Weights
    kernels: dict[str, np.ndarray]
    weights: dict[str, Weights]


def train_all(
    rates: dict[str, float],
    corpus: data.Corpus,
    *,
    steps: int,
    batch_size: int,
    seed: int = 0,
) -> Trained:
    """Train each method at its learning rate, with the same head and batches."""
    plain = train.fresh_model(seed)
    start, kernels = plain.get_weights(), kr.analysis.kernels(plain)
    weights = {}
    for method, rate in rates.items():
        model = train.fresh_model(seed)
        train.adapt(model, method, seed)
        found = train.fit(
            model,
            corpus.train,
            learning_rate=rate,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
        )
        weights[method] = merged_weights(model, plain)
        train.forget_compiled()
        print(f"{method}: loss {found['train_loss']:.3f} at the end", flush=True)
    return Trained(plain, start, kernels, weights)


def merged_weights(model: keras.Model, plain: keras.Model) -> Weights:
    """Return a trained model's weights, merged, in the order of a plain model.

    Args:
        model: A model with adapters of any kind, or without.
        plain: The same architecture without adapters.
    """
    trained = {
        f"{site.path}/{variable.name}": variable
        for site in sites(model)
        for variable in own_variables(site.layer)
    }
    kernels = {
        site.path: train.current_kernel(site.layer)
        for site in sites(model)
        if hasattr(site.layer, "_kernel")
    }
    values = {}
    for site in sites(plain):
        for variable in own_variables(site.layer):
            if variable.name == "kernel" and site.path in kernels:
                value = kernels[site.path]
            else:
                value = trained[f"{site.path}/{variable.name}"]
            values[id(variable)] = np.asarray(ops.convert_to_numpy(value), "float32")
    return [values[id(variable)] for variable in plain.weights]


def spectra(trained: Trained, path: Path) -> str:
    """Plot the singular values of a feedforward update; return ranks of two layers.

    They are the first block's first feedforward layer and query projection; norms are
    means over all adapted layers.
    """
    layers = {
        "feedforward": train.first_feedforward(trained.plain).path,
        "query": next(s.path for s in sites(trained.plain) if s.name == "query"),
    }
    drawn, lines = {}, []
    for method, weights in trained.weights.items():
        trained.plain.set_weights(weights)
        updates = kr.analysis.updates(trained.plain, trained.kernels)
        drawn[method] = kr.analysis.update_spectrum(updates[layers["feedforward"]])
        seen = [updates[layer] for layer in layers.values()]
        adapted = [m for at, m in updates.items() if at.split("/")[-1] not in HEAD]
        norm = np.mean([np.linalg.norm(matrix) for matrix in adapted])
        lines.append(
            [
                method,
                *(str(kr.analysis.update_rank(matrix)) for matrix in seen),
                *(number(kr.analysis.effective_rank(matrix), 1) for matrix in seen),
                number(norm, 3),
            ]
        )
    kr.analysis.plot_spectra(drawn, path, title=f"Update of {layers['feedforward']}")
    head = ["method", *(f"rank, {name}" for name in layers)]
    head += [*(f"effective rank, {name}" for name in layers), "mean norm"]
    return markdown(head, lines)


def likeness(trained: Trained, examples: data.Examples, path: Path) -> str:
    """Plot the CKA of each block's output with the first method's; return the values.

    Args:
        trained: Its first method, full fine-tuning, is the reference.
        examples: Sentences; their tokens are the examples of CKA.
        path: The file of the plot.
    """
    found = (s for s in sites(trained.plain) if s.name.startswith("transformer_layer_"))
    blocks = {site.path: f"block {index}" for index, site in enumerate(found, 1)}
    mask = examples.inputs["padding_mask"]
    outputs = {}
    for name, weights in {**trained.weights, BEFORE: trained.start}.items():
        trained.plain.set_weights(weights)
        outputs[name] = kr.analysis.layer_outputs(
            trained.plain, examples.inputs, list(blocks), mask
        )
    reference, *others = outputs
    series = {
        name: {
            label: kr.analysis.cka(outputs[name][at], outputs[reference][at])
            for at, label in blocks.items()
        }
        for name in others
    }
    kr.analysis.plot_cka(series, path, title=f"CKA with `{reference}`")
    lines = [[n, *(number(v, 4) for v in line.values())] for n, line in series.items()]
    return markdown(["CKA", *blocks.values()], lines)


def plane(
    trained: Trained,
    examples: data.Examples,
    paths: list[Path],
    *,
    resolution: int,
    batch_size: int,
) -> str:
    """Plot the loss on the plane through the optima; return losses and distances.

    Args:
        trained: Three methods.
        examples: The examples of the loss.
        paths: The files of the plots: `.png`, `.html`, ….
        resolution: Points of the grid in each direction.
        batch_size: Sentences per batch; an incomplete last batch is left out.
    """
    whole = len(examples.labels) // batch_size * batch_size
    examples = examples.take(np.arange(whole))
    trained.plain.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    loss = kr.analysis.loss_of(
        trained.plain, examples.inputs, examples.labels, batch_size=batch_size
    )
    found = kr.analysis.loss_plane(trained.weights, loss, resolution=resolution)
    for path in paths:
        kr.analysis.plot_loss_plane(
            found, path, title=f"Loss of {whole} training sentences"
        )
    return _corners(found)


def _corners(found: Any) -> str:
    """Return each optimum's loss and its distance from the others."""
    lines = []
    for name, corner, loss in zip(
        found.names, found.corners, found.corner_losses, strict=True
    ):
        away = [np.linalg.norm(corner - other) for other in found.corners]
        lines.append([name, number(loss, 4), *(number(d, 3) for d in away)])
    return markdown(["", "loss", *(f"to {name}" for name in found.names)], lines)
