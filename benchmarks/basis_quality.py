"""Held-out loss and accuracy by basis: real models, real data, several seeds each.

Each run adapts all linear layers with one basis and one seed (of the bases, of a new
head and of the order of the data). The held-out loss, a mean negative log-likelihood,
tells more than the accuracy on few examples.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks import results
from benchmarks.quality_tasks import TASKS, build

OUT = results.RAW / "basis_quality.json"


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of sst2 and commonsense")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--bases", nargs="+", default=("uniform", "kronecker"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--out", type=Path, default=OUT, help="a JSON file")
    return parser.parse_args(arguments)


def run(name, basis, seed, args):
    """Fine-tune and return the measurements."""
    import keras

    import keras_randlora as kr

    keras.utils.set_random_seed(seed)
    task = build(name, args.data)
    report = kr.enable_randlora(
        task.model,
        rank=args.rank,
        targets="all-linear",
        basis=basis,
        seed=seed,
        **task.options,
    )
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, args.steps, warmup_target=args.learning_rate, warmup_steps=args.steps // 10
    )
    task.model.compile(
        keras.optimizers.AdamW(schedule, weight_decay=0.0, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )
    before = evaluate(task)
    batches = task.batches(seed)
    started = time.perf_counter()
    for _ in range(args.steps):
        inputs, targets, weights = next(batches)
        task.model.train_on_batch(inputs, targets, sample_weight=weights)
    seconds = time.perf_counter() - started
    return {
        "basis": basis,
        "seed": seed,
        "before": before,
        "after": evaluate(task),
        "chance": task.chance,
        "trained": report.trainable,
        "seconds": seconds,
    }


def evaluate(task):
    """Return the loss per target token or example, and the accuracy."""
    inputs, targets, weights = task.held_out
    results = task.model.evaluate(
        inputs,
        targets,
        sample_weight=weights / weights.mean(),
        batch_size=2 * task.batch_size,
        return_dict=True,
        verbose=0,
    )
    return {"loss": results["loss"], "accuracy": results["accuracy"]}


def main(arguments=None):
    args = parse_arguments(arguments)
    os.environ["KERAS_BACKEND"] = args.backend
    settings = {k: v for k, v in vars(args).items() if k not in ("data", "out")}
    result = results.new("basis_quality", settings)
    title = f"Held-out loss by basis, rank {args.rank}, {args.seeds} seeds"
    for task in args.tasks:
        result["cases"].append({"heading": task, "rows": []})
        for seed in range(args.seeds):
            for basis in args.bases:
                row = run(task, basis, seed, args)
                result["cases"][-1]["rows"].append(row)
                print(task, row, flush=True)
                results.write(result, args.out, title)
    return results.show(result, args.out)


if __name__ == "__main__":
    sys.exit(main())
