"""Optimizers and weight decay on λ and γ: a small fine-tuning run, several seeds each.

A network is trained on the labels of one teacher, then adapted to those of another that
shares half of its first layer. Each optimizer uses the learning rate with the lowest
held-out loss on the first seed.
"""

import argparse
import os
import statistics
import sys
from typing import Any

import numpy as np

from benchmarks.report import markdown

INPUTS, HIDDEN, CLASSES = 32, 64, 8
EXAMPLES = 1024
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
DECAYS = (0.0, 0.01, 0.1, 1.0)


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--backend", default="jax")
    return parser.parse_args(arguments)


def methods() -> dict[str, Any]:
    """Return functions from a learning rate to an optimizer, by name."""
    from keras import optimizers as keras_optimizers

    def adamw(decay, *, decays_gamma=True):
        def make(rate):
            optimizer = keras_optimizers.AdamW(rate, weight_decay=decay)
            if not decays_gamma:
                optimizer.exclude_from_weight_decay(var_names=["gamma"])
            return optimizer

        return make

    found = {f"AdamW, decay {decay:g}": adamw(decay) for decay in DECAYS}
    found |= {
        f"AdamW, decay {decay:g}, not of γ": adamw(decay, decays_gamma=False)
        for decay in DECAYS[1:]
    }
    for name in ("Muon", "Adafactor", "Lamb", "Lion", "ScheduleFreeAdamW", "SGD"):
        if hasattr(keras_optimizers, name):
            found[name] = getattr(keras_optimizers, name)
    return found


def teacher(rng, shared=None):
    """Return the two kernels of a teacher; half of the first may be another's."""
    first = rng.standard_normal((INPUTS, HIDDEN)) / INPUTS**0.5
    if shared is not None:
        first[:, ::2] = shared[0][:, ::2]
    return first, rng.standard_normal((HIDDEN, CLASSES))


def labels(inputs, kernels):
    """Return a teacher's labels of the inputs."""
    return (np.tanh(2 * inputs @ kernels[0]) @ kernels[1]).argmax(axis=-1)


class Task:
    """A trained network and the data of another task.

    Args:
        seed: Of the teachers, the data and the network.
    """

    def __init__(self, seed: int) -> None:
        import keras

        rng = np.random.default_rng(seed)
        source = teacher(rng)
        target = teacher(rng, source)
        inputs = rng.standard_normal((6 * EXAMPLES, INPUTS)).astype("float32")
        keras.utils.set_random_seed(seed)
        self.model = keras.Sequential(
            [
                keras.Input((INPUTS,)),
                keras.layers.Dense(HIDDEN, activation="tanh", name="hidden_1"),
                keras.layers.Dense(HIDDEN, activation="tanh", name="hidden_2"),
                keras.layers.Dense(CLASSES, name="head"),
            ]
        )
        self.model.compile(keras.optimizers.Adam(3e-3), **_losses())
        self.model.fit(inputs, labels(inputs, source), 64, epochs=5, verbose=0)
        self.model.compile(**_losses())  # whoever adapts it brings another optimizer
        self.training = inputs[:EXAMPLES], labels(inputs[:EXAMPLES], target)
        self.held_out = inputs[-EXAMPLES:], labels(inputs[-EXAMPLES:], target)

    def run(self, optimizer, seed: int, args) -> float:
        """Adapt the network, train, and return the held-out loss; undo all of it."""
        import keras

        import keras_randlora as kr

        keras.utils.set_random_seed(seed)
        kr.enable_randlora(
            self.model, rank=args.rank, alpha=2 * args.rank, targets="all-linear"
        )
        self.model.compile(optimizer, **_losses())
        self.model.fit(*self.training, 64, epochs=args.epochs, verbose=0)
        loss = self.model.evaluate(*self.held_out, 256, verbose=0)
        kr.disable_randlora(self.model)
        return loss


def _losses() -> dict[str, Any]:
    import keras

    return {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}


def main(arguments=None):
    args = parse_arguments(arguments)
    os.environ["KERAS_BACKEND"] = args.backend
    tasks = [Task(seed) for seed in range(args.seeds)]
    rows = []
    for name, make in methods().items():
        tried = {rate: tasks[0].run(make(rate), 0, args) for rate in RATES}
        best = min(tried, key=tried.get)
        others = [t.run(make(best), s, args) for s, t in enumerate(tasks) if s]
        losses = [tried[best], *others]
        deviation = statistics.stdev(losses) if others else 0.0
        rows.append(
            [name, f"{best:g}", f"{statistics.mean(losses):.3f} ± {deviation:.3f}"]
        )
        print(*rows[-1], tried, flush=True)
    print(markdown(["optimizer", "learning rate", "held-out loss"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
