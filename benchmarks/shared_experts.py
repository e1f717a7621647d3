"""Held-out loss with λ or γ shared by the experts of a small mixture.

    KERAS_BACKEND=jax python -m benchmarks.shared_experts

A mixture of eight experts is trained from scratch on a random teacher of the same kind.
Then each of the teacher's experts changes differently, and only updates of the experts
are trained. Ranks are chosen for nearly equal numbers of parameters; each variant has
the best of the learning rates on the first seed. Losses are held-out losses ÷ the loss
before.
"""

import argparse
import itertools
import statistics
from collections.abc import Sequence

import keras
import numpy as np

import keras_randlora as kr

EXPERTS, WIDTH, INNER, SAMPLES = 8, 48, 96, 4096
AXES = {"experts/up": "batch in out", "experts/down": "batch in out"}
SHARED = ("none", "lambda", "gamma")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)


class Mixture(keras.layers.Layer):
    """Experts of two layers each, weighted by a router."""

    def build(self, input_shape):
        """Create the weights."""
        self.router = self.add_weight(name="router", shape=(WIDTH, EXPERTS))
        self.up = self.add_weight(name="up", shape=(EXPERTS, WIDTH, INNER))
        self.down = self.add_weight(name="down", shape=(EXPERTS, INNER, WIDTH))

    def call(self, x):
        """Return the experts' outputs, weighted."""
        chosen = keras.ops.softmax(4 * keras.ops.matmul(x, self.router))
        inner = keras.ops.relu(keras.ops.einsum("bi,eio->beo", x, self.up))
        outputs = keras.ops.einsum("beo,eoi->bei", inner, self.down)
        return keras.ops.sum(chosen[..., None] * outputs, axis=1)


def mixture():
    """Return a model of one mixture."""
    layer = Mixture(name="experts")
    return keras.Sequential([keras.Input((WIDTH,)), layer])


def teachers(seed):
    """Return two mixtures; each expert of the second differs from the first's."""
    keras.utils.set_random_seed(seed)
    first, second = mixture(), mixture()
    second.set_weights(first.get_weights())
    rng = np.random.default_rng(seed)
    for weight in second.weights[1:]:
        noise = rng.standard_normal(weight.shape).astype("float32")
        weight.assign(weight + 0.5 * keras.ops.std(weight) * noise)
    return first, second


def data(teacher, seed):
    """Return inputs and a teacher's outputs."""
    inputs = np.random.default_rng(seed).standard_normal((SAMPLES, WIDTH))
    inputs = inputs.astype("float32")
    return inputs, teacher.predict(inputs, batch_size=SAMPLES, verbose=0)


def fitted(model, inputs, targets, rate, epochs):
    """Train a model, with a learning rate that falls to zero."""
    steps = epochs * SAMPLES // 128
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=0.0), "mse")
    model.fit(inputs, targets, batch_size=128, epochs=epochs, verbose=0)
    return model


def loss(model, inputs, targets):
    """Return the mean squared error."""
    outputs = model.predict(inputs, batch_size=SAMPLES, verbose=0)
    return float(np.mean((outputs - targets) ** 2))


def count(shared, rank):
    """Return the number of parameters of a variant."""
    options = dict(targets=[*AXES], weight_axes=AXES, shared_in_batch=shared)
    return kr.enable_randlora(mixture(), rank, **options).adapter


def rank_for(shared, wanted):
    """Return the rank of a variant with the nearest number of parameters."""
    ranks = range(1, WIDTH + 1)
    return min(ranks, key=lambda rank: abs(count(shared, rank) - wanted))


def ratio(seed, shared, rank, rate, epochs):
    """Return the held-out loss after adapting ÷ that before."""
    first, second = teachers(seed)
    student = fitted(mixture(), *data(first, 10 + seed), 1e-2, epochs)
    held_out = data(second, 30 + seed)
    before = loss(student, *held_out)
    tuned = mixture()
    tuned.set_weights(student.get_weights())
    kr.enable_randlora(
        tuned, rank, [*AXES], weight_axes=AXES, shared_in_batch=shared, alpha=rank
    )
    fitted(tuned, *data(second, 20 + seed), rate, epochs)
    return loss(tuned, *held_out) / before


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 24])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args(arguments)
    print("| experts share | rank | parameters | learning rate | loss after ÷ before |")
    print("|---|--:|--:|--:|--:|")
    for wanted, shared in itertools.product(options.ranks, SHARED):
        rank = rank_for(shared, count("none", wanted))
        tried = {r: ratio(0, shared, rank, r, options.epochs) for r in RATES}
        rate = min(tried, key=tried.__getitem__)
        seeds = range(1, options.seeds)
        losses = [tried[rate]]
        losses += [ratio(s, shared, rank, rate, options.epochs) for s in seeds]
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        mean = statistics.mean(losses)
        print(
            f"| {shared} | {rank} | {count(shared, rank):,} | {rate:g} | "
            f"{mean:.3f} ± {spread:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
