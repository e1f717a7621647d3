"""The paper's formula in loops: NumPy, float64, and nothing of the package.

RandLoRA (Albert et al., ICLR 2025), equation 4: M is the sum over the bases j of
`B_j Λ_j A Γ_j`, times `alpha / r`, with one A for all. `Λ_j` and `Γ_j` are diagonal
matrices of λ's column j and γ's row j, and `B_j` is columns j, n + j, 2n + j, … of B.
"""

from typing import NamedTuple

import numpy as np


class Factors(NamedTuple):
    """λ `(r, n)`, γ `(n, s)`, A `(r, s)`, B `(l, n * r)`, all float64."""

    lambda_: np.ndarray
    gamma: np.ndarray
    basis_a: np.ndarray
    basis_b: np.ndarray


def num_bases(inputs, outputs, rank):
    """Return the least n with `n * rank >= min(inputs, outputs)`."""
    bases = 1
    while bases * rank < min(inputs, outputs):
        bases += 1
    return bases


def random_factors(inputs, outputs, rank, bases=None, seed=0):
    """Draw factors of order one for a kernel `(inputs, outputs)`."""
    larger, smaller = max(inputs, outputs), min(inputs, outputs)
    bases = bases or num_bases(inputs, outputs, rank)
    draw = np.random.default_rng(seed).standard_normal
    return Factors(
        lambda_=draw((rank, bases)),
        gamma=draw((bases, smaller)),
        basis_a=draw((rank, smaller)),
        basis_b=draw((larger, bases * rank)),
    )


def basis_columns(base, rank, bases):
    """Return which columns of B are `B_j`: j, n + j, 2n + j, …"""
    return [k * bases + base for k in range(rank)]


def update(factors, scale):
    """Return M of shape `(l, s)`."""
    lambda_, gamma, basis_a, basis_b = (np.asarray(f, "float64") for f in factors)
    rank, bases = lambda_.shape
    total = np.zeros((basis_b.shape[0], gamma.shape[1]))
    for j in range(bases):
        b_j = basis_b[:, basis_columns(j, rank, bases)]
        total += b_j @ np.diag(lambda_[:, j]) @ basis_a @ np.diag(gamma[j])
    return scale * total


def kernel_update(inputs, outputs, factors, scale):
    """Return what is added to the kernel `(inputs, outputs)`: M or its transpose."""
    matrix = update(factors, scale)
    return matrix.T if inputs <= outputs else matrix


def batch_update(inputs, outputs, factors, scale):
    """Return what is added to a batch of matrices, one after the other.

    λ is `(E, r, n)` and γ `(E, n, s)`; one of them has a single matrix if all share it.
    """
    count = max(len(factors.lambda_), len(factors.gamma))
    one_each = (np.broadcast_to(f, (count, *f.shape[1:])) for f in factors[:2])
    return np.stack(
        [
            kernel_update(inputs, outputs, Factors(*pair, *factors[2:]), scale)
            for pair in zip(*one_each, strict=True)
        ]
    )


def to_kernel(matrix, equation, kernel_shape):
    """Return a matrix `(inputs, outputs)` as the kernel of an einsum equation."""
    left, _, outputs = equation.partition("->")
    kernel_labels = left.split(",")[1]
    size = dict(zip(kernel_labels, kernel_shape, strict=True))
    contracted = [label for label in kernel_labels if label not in outputs]
    produced = [label for label in kernel_labels if label in outputs]
    split = matrix.reshape([size[label] for label in contracted + produced])
    return np.einsum(f"{''.join(contracted + produced)}->{kernel_labels}", split)


def slopes(function, array, step=1e-2):
    """Return the gradient of a scalar function by central differences.

    Exact but for rounding where the function is linear or quadratic in each entry.
    """
    gradient = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        values = []
        for sign in (1, -1):
            moved = array.copy()
            moved[index] += sign * step
            values.append(function(moved))
        gradient[index] = (values[0] - values[1]) / (2 * step)
    return gradient
