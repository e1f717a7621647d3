"""Fine-tune a language model with RandLoRA: the options of PEFT's example, on Keras.

    python examples/randlora_finetuning.py --base_model smollm2 --data_path alpaca.jsonl

A record (Alpaca, chat messages, prompt and completion) is one row, with the loss on its
answers only; plain text is cut into windows. `--output_dir` gets `adapter.safetensors`
(that of the lowest validation loss), `run.json`, `curves.png`, and `checkpoint-STEP/`,
also at the end or at Ctrl-C, from which `--resume` resumes.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Run as a file, it has only its neighbours on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import curves
from chat import reply
from checkpoints import (
    ADAPTER,
    Interruption,
    Progress,
    find_checkpoint,
    remove_checkpoints,
    require_same,
    restore,
    save_adapter,
    save_checkpoint,
)
from command_line import UserError, exit_status, user_choices
from demo import as_json, load, new_folder, timed
from finetuning_data import Asked, Data, order_of_rows, prepare, read
from finetuning_options import FREE, chosen_device, parse_arguments, require_packages
from text_data import Windows

from benchmarks import machine, memory
from keras_randlora_command import quiet, start_tensorflow

INTERRUPTED = 130  # the exit status of a shell after Ctrl-C
CPU_ONLY = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_PLATFORMS": "cpu",
    "KERAS_TORCH_DEVICE": "cpu",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune; return 0, 2 if an option is wrong, 130 if interrupted."""
    options = parse_arguments(arguments)
    os.environ["KERAS_BACKEND"] = options.backend  # read when Keras is imported
    if options.device == "cpu":
        os.environ.update(CPU_ONLY)
    with quiet():
        import keras  # noqa: F401  # loads the backend
    return exit_status("randlora_finetuning.py", lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Load, adapt, train and write the results; return the exit status."""
    seconds: dict[str, float] = {}
    checkpoint = find_checkpoint(options)
    if checkpoint is not None:
        require_same(checkpoint, settings(options))
    require_packages(options)
    if options.merge_to is not None and options.merge_to.exists():
        raise UserError(f"--merge_to {options.merge_to} exists already.")
    with user_choices():
        examples = read(options.data_path)
    output = new_folder(options.output_dir)
    device = chosen_device(options)
    measured = memory.of(device, options.backend)
    measured.settle()

    print(f"Loading {options.base_model} on {options.backend} …", flush=True)
    start_tensorflow()  # which keras-hub imports
    with timed(seconds, "load"):
        model, preprocessor = load(options.base_model, dtype=options.dtype)
        data = prepare(examples, preprocessor, options)
    with timed(seconds, "adapt"):
        if options.quantize:
            quantize(model, options.quantize)
        trained = adapt(model, options)
    steps = number_of_steps(options, len(data.training.token_ids))
    compile_for(model, steps, options)
    progress = Progress()
    if checkpoint is not None:
        require_same(checkpoint, checksum(data))
        progress = restore(checkpoint, model, options)
    else:
        remove_checkpoints(output)
    show_plan(trained, steps, data, progress)

    if not progress.answers:
        progress.answers = answers(model, preprocessor, data.asked)
    with timed(seconds, "train"), Interruption() as interruption:
        train(model, data, progress, steps, options, interruption)
    if interruption.asked:
        print(f"Stopped after step {progress.step}. Resume with --resume.")
        return INTERRUPTED
    peak = measured.peak()
    used = values_used(model, data, device, steps, options)
    answered = []
    if data.asked:
        if not options.use_lora:
            restore_best(model, output / ADAPTER)
        after = answers(model, preprocessor, data.asked)
        show_answers(data.asked, progress.answers, after)
        answered = [
            {**asked._asdict(), "before": before, "after": now}
            for asked, before, now in zip(
                data.asked, progress.answers, after, strict=True
            )
        ]
    if options.merge_to is not None:
        del model
        with timed(seconds, "merge"):
            merge(options, output / ADAPTER)

    done = dataclasses.asdict(progress)
    del done["answers"]
    record = {
        "options": used,
        "machine": {"device": device, **machine.describe()},
        "trained": trained,
        "rows": {
            name: len(windows.token_ids)
            for name, windows in zip(("training", "validation"), data, strict=False)
            if windows
        },
        "planned_steps": steps,
        **done,
        "best": progress.best if progress.validation else None,
        "answers": answered,
        "seconds": {**seconds, "train": round(progress.seconds, 2)},
        "peak_bytes": peak,
    }
    (output / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    plot(output / "curves.png", progress, options)
    show_results(output, progress, options)
    return 0


# Model.


def quantize(model: Any, mode: str) -> None:
    """Quantize every layer that can be."""
    with warnings.catch_warnings():
        # Layers without kernels; Keras 3.16 warns once, of all.
        warnings.filterwarnings("ignore", "Layer .* does not have a `quantize`")
        warnings.filterwarnings("ignore", "`model.quantize.*`. [0-9]+ layer")
        model.quantize(mode)


def adapt(model: Any, options: argparse.Namespace) -> int:
    """Add RandLoRA, or Keras's LoRA; return the number of trainable parameters."""
    import keras_randlora as kr
    from examples import methods

    targets = options.randlora_target_modules
    targets = targets.split(",") if targets else None
    with user_choices():
        if options.use_lora:
            return methods.adapt(model, f"lora-{options.rank}", targets=targets)
        report = kr.enable_randlora(
            model,
            options.rank,
            targets,
            alpha=options.randlora_alpha,
            dropout=options.randlora_dropout,
            basis=options.basis or "uniform",
            seed=options.seed,
        )
    print(f"\n{report}\n")
    return report.trainable


def number_of_steps(options: argparse.Namespace, total: int) -> int:
    """Return the optimizer steps of `num_epochs` epochs."""
    steps = math.ceil(options.num_epochs * total / options.batch_size)
    return min(steps, options.max_steps or steps)


def compile_for(model: Any, steps: int, options: argparse.Namespace) -> None:
    """Compile with a schedule: warm-up, then decay to zero with the last step.

    Keras counts each pass of a step for the schedule.
    """
    import keras

    passes = options.gradient_accumulation_steps
    steps *= passes
    warmup = max(1, int(steps * options.warmup_ratio))
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=options.learning_rate / warmup,
        warmup_target=options.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(1, steps - warmup),
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(
            schedule,
            weight_decay=options.weight_decay,
            global_clipnorm=1.0,
            gradient_accumulation_steps=passes if passes > 1 else None,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
        **({"sampler": "greedy"} if hasattr(model, "generate") else {}),
    )


def restore_best(model: Any, adapter: Path) -> None:
    """Set the values of the best adapter."""
    import keras_randlora as kr

    kr.load_adapter(model, adapter)


def answers(model: Any, preprocessor: Any, asked: Sequence[Asked]) -> list[str]:
    """Return what the model generates after each prompt."""
    if asked:
        print(f"Generating {len(asked)} answers …", flush=True)
    return [reply(model, preprocessor, one.prompt) for one in asked]


def merge(options: argparse.Namespace, adapter: Path) -> None:
    """Save the base with the best adapter merged, in floating point."""
    import keras_randlora as kr

    print(f"Merging into {options.merge_to} …", flush=True)
    model, preprocessor = load(options.base_model, dtype=options.dtype)
    kr.load_adapter(model, adapter)
    one_file = options.merge_to.suffix == ".keras"
    if not one_file:
        model.preprocessor = preprocessor  # the tokenizer goes into the folder
    with user_choices():
        kr.export_merged(model, options.merge_to, "keras" if one_file else "preset")


# Training.


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a resumed run must share with the interrupted one."""
    return {n: as_json(v) for n, v in vars(options).items() if n not in FREE}


def checksum(data: Data) -> dict[str, Any]:
    """Return the checksum of the rows, which a resumed run must share too."""
    content = np.ascontiguousarray(data.training.token_ids)
    return {"checksum of the data": zlib.crc32(content)}


def train(
    model: Any,
    data: Data,
    progress: Progress,
    steps: int,
    options: argparse.Namespace,
    interruption: Interruption,
) -> None:
    """Train from `progress` on, and update it.

    Each call of `fit` trains up to the next evaluation or checkpoint.
    """
    order = order_of_rows(options.seed, len(data.training.token_ids))
    for _ in range(progress.step * options.batch_size):
        next(order)
    added = loggers(options)
    best = options.output_dir / ADAPTER
    if data.validation is not None and not progress.validation:
        progress.validation.append((0, evaluate(model, data.validation, options)))
    shared = {**settings(options), **checksum(data)}
    stopped = False
    while progress.step < steps and not stopped and not interruption.asked:
        end = next_stop(progress.step, steps, options)
        chosen = [
            next(order) for _ in range((end - progress.step) * options.batch_size)
        ]
        print(f"Steps {progress.step + 1} to {end} of {steps}")
        judged = end % options.eval_step == 0 or end == steps
        spent: dict[str, float] = {}
        with timed(spent, "fit"):
            losses, validation = fit(
                model,
                Windows(*(array[chosen] for array in data.training)),
                data.validation if judged else None,
                progress.step,
                [interruption.callback(options.gradient_accumulation_steps), *added],
                options,
            )
        progress.step += len(losses)
        progress.training += losses
        progress.seconds += spent["fit"]
        if not np.all(np.isfinite(losses)):
            raise UserError(
                f"The loss is not finite any more by step {progress.step}: choose a "
                "lower --learning_rate."
            )
        if validation is not None and progress.step == end:
            progress.validation.append((progress.step, validation))
            progress.waited += 1
            if validation < progress.best:
                progress.best, progress.waited = validation, 0
                save_adapter(model, best, options)
            if progress.waited == options.patience:
                print(
                    f"No lower validation loss in {progress.waited} validations: stop."
                )
                stopped = True
        last = stopped or progress.step == steps
        if last or interruption.asked or progress.step % options.save_step == 0:
            save_checkpoint(model, progress, shared, options, finished=last)
    if data.validation is None and not interruption.asked:
        save_adapter(model, best, options)


def next_stop(step: int, steps: int, options: argparse.Namespace) -> int:
    """Return the step of the next evaluation or checkpoint, or the last one."""
    periods = (options.eval_step, options.save_step)
    return min(steps, *(period * (step // period + 1) for period in periods))


def reseed(model: Any, seed: int, step: int) -> None:
    """Let dropout depend only on the step at which a call of `fit` begins."""
    import keras

    generator = np.random.default_rng((seed, step))
    keras.utils.set_random_seed(int(generator.integers(2**32)))  # torch's dropout
    weights = {id(weight) for weight in model.weights}
    for variable in model.variables:
        if id(variable) not in weights:  # the state of a generator: seed and counter
            variable.assign([int(generator.integers(2**31)), 0])


def fit(
    model: Any,
    windows: Windows,
    validation: Windows | None,
    step: int,
    added: list[Any],
    options: argparse.Namespace,
) -> tuple[list[float], float | None]:
    """Train on the rows once; return each step's loss, and the validation loss."""
    import keras

    means: list[float] = []
    recorder = keras.callbacks.LambdaCallback(
        # Not before: building a model may draw random numbers too.
        on_epoch_begin=lambda *_: reseed(model, options.seed, step),
        on_train_batch_end=lambda _, logs: means.append(float(logs["loss"])),
    )
    history = model.fit(
        windows.inputs,
        windows.targets,
        sample_weight=windows.weights,
        batch_size=options.batch_size // options.gradient_accumulation_steps,
        shuffle=False,
        initial_epoch=step,
        epochs=step + 1,
        validation_data=as_keras(validation),
        validation_batch_size=options.batch_size,
        callbacks=[recorder, *added],
    )
    passes = options.gradient_accumulation_steps
    losses = np.reshape(curves.step_losses(means), (-1, passes)).mean(axis=1).tolist()
    return losses, history.history.get("val_loss", [None])[-1]


def evaluate(model: Any, windows: Windows, options: argparse.Namespace) -> float:
    """Return the mean loss of the tokens that count."""
    inputs, targets, weights = as_keras(windows)
    return model.evaluate(
        inputs,
        targets,
        sample_weight=weights,
        batch_size=options.batch_size,
        verbose=0,
        return_dict=True,
    )["loss"]


def as_keras(windows: Windows | None) -> tuple | None:
    """Return inputs, targets and weights, as `validation_data` takes them."""
    return windows and (windows.inputs, windows.targets, windows.weights)


def loggers(options: argparse.Namespace) -> list[Any]:
    """Return the callbacks that log elsewhere."""
    found = []
    if options.tensorboard:
        import keras

        folder = str(options.tensorboard)
        found.append(keras.callbacks.TensorBoard(folder, write_graph=False))
    if options.wandb:
        import wandb
        from wandb.integration.keras import WandbMetricsLogger

        config = {name: as_json(v) for name, v in vars(options).items()}
        wandb.init(project=options.wandb, config=config)
        found.append(WandbMetricsLogger())
    return found


# Results.


def values_used(
    model: Any, data: Data, device: str, steps: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the options with the values that were used; what is off is left out."""
    used = {name: as_json(v) for name, v in vars(options).items()}
    used |= {"device": device, "max_steps": steps, "dtype": model.dtype_policy.name}
    used |= {"data_path": str(options.data_path or "Python's own help")}
    used |= {"template": data.template or "none"}
    if not options.use_lora:
        import keras_randlora as kr
        from keras_randlora.adapt import adapted_state

        config = adapted_state(model).config
        names = {layer.path.rpartition("/")[2] for layer in kr.summary(model).layers}
        used |= {"basis": config.basis, "randlora_alpha": config.alpha}
        used["randlora_target_modules"] = options.randlora_target_modules or ",".join(
            sorted(names)
        )
    return {name: value for name, value in used.items() if value is not None}


def show_answers(
    asked: Sequence[Asked], before: Sequence[str], after: Sequence[str]
) -> None:
    """Print prompts with the answers before and after, and those of the data."""
    for one, *answered in zip(asked, before, after, strict=True):
        found = [
            ("Prompt", one.prompt),
            *zip(("Before", "After"), answered, strict=True),
        ]
        if one.expected is not None:
            found.append(("In the data", one.expected))
        print()
        for name, text in found:
            print(f"{name}:")
            print("\n".join(f"  | {line}" for line in text.strip().splitlines()))


def show_plan(trained: int, steps: int, data: Data, progress: Progress) -> None:
    """Print the size of the run."""
    held = 0 if data.validation is None else len(data.validation.token_ids)
    print(
        f"{trained:,} trainable parameters, {len(data.training.token_ids):,} rows of "
        f"{data.training.token_ids.shape[1]} tokens, {held:,} to validate on, "
        f"{steps:,} steps."
    )
    if data.template:
        print(f"Template: {data.template}.")
    if progress.step:
        print(f"Resuming after step {progress.step}.")


def show_results(output: Path, progress: Progress, options: argparse.Namespace) -> None:
    """Print the losses and the written files."""
    if progress.validation:
        first, last = progress.validation[0][1], progress.best
        print(f"\nValidation loss {first:.4f} before, {last:.4f} at its lowest.")
    print(f"Adapter: {output / ADAPTER}")
    if options.merge_to is not None:
        print(f"Merged model: {options.merge_to}")
    print(f"Ask it: python examples/chat.py --run {output}")
    print(f"Curves: {output / 'curves.png'}; all results: {output / 'run.json'}")


def plot(path: Path, progress: Progress, options: argparse.Namespace) -> None:
    """Plot the loss of each step and the validation losses."""
    method = "LoRA" if options.use_lora else "RandLoRA"
    curves.draw(
        path,
        progress.training,
        progress.validation,
        label="validation",
        token="learned token",
        title=f"{options.base_model}, {method} rank {options.rank}, {options.backend}",
    )


if __name__ == "__main__":
    sys.exit(main())
