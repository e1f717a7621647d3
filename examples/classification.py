"""Classifiers: order of the training data, accuracy and loss."""

import numpy as np


def accuracy_and_loss(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return accuracy and mean negative log-likelihood.

    Args:
        logits: `(n, classes)`.
        labels: The right class of each, `(n,)`.
    """
    scores = np.asarray(logits, "float64")
    scores = scores - scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    right = scores.argmax(axis=1) == labels
    return float(right.mean()), float(-scores[np.arange(len(labels)), labels].mean())


def order(count: int, needed: int, seed: int) -> np.ndarray:
    """Return `(needed,)` row indices: all rows, shuffled again for each epoch."""
    rng = np.random.default_rng([seed, 2])
    rounds = -(-needed // count)
    return np.concatenate([rng.permutation(count) for _ in range(rounds)])[:needed]
