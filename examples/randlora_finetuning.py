"""Fine-tune a language model with RandLoRA: the options of PEFT's example, on Keras.

    python examples/randlora_finetuning.py --base_model smollm2 --data_path alpaca.jsonl

An Alpaca record is one row, with the loss on its answer only; plain text is cut into
windows. `--output_dir` gets `adapter.safetensors` (that of the lowest validation loss),
`run.json`, `curves.png`, and during training `checkpoint-STEP/`, from which `--resume`
resumes exactly.
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import shutil
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Run as a file, it has only its neighbours on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import curves
from checkpoints import (
    ADAPTER,
    Progress,
    checkpoints,
    find_checkpoint,
    restore,
    save_adapter,
    save_checkpoint,
)
from command_line import (
    BACKENDS,
    DefaultsHelp,
    OneLineParser,
    UserError,
    exit_status,
    positive,
    user_choices,
)
from demo import as_json, load, new_folder, timed
from pretrained import LANGUAGE_MODELS
from text_data import (
    Document,
    Tokenizer,
    Windows,
    encode,
    load_documents,
    pack,
    rows,
    split,
    unit_mean,
    whole_batches,
)

from benchmarks import machine, memory

HELD_OUT_FRACTION = 0.1  # of plain text
# A resumed run may differ from the interrupted one in these.
FREE = ("output_dir", "resume", "device", "save_step", "patience", "merge_to")
FREE += ("tensorboard", "wandb")
CPU_ONLY = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_PLATFORMS": "cpu",
    "KERAS_TORCH_DEVICE": "cpu",
}


class Data(NamedTuple):
    """Training rows, with scaled weights, and validation rows."""

    training: Windows
    validation: Windows | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune; return 0, or 2 if an option is wrong."""
    options = parse_arguments(arguments)
    os.environ["KERAS_BACKEND"] = options.backend  # read when Keras is imported
    if options.device == "cpu":
        os.environ.update(CPU_ONLY)
    return exit_status("randlora_finetuning.py", lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Load, adapt, train and write the results."""
    seconds: dict[str, float] = {}
    checkpoint = find_checkpoint(options)
    require_packages(options)
    if options.merge_to is not None and options.merge_to.exists():
        raise UserError(f"--merge_to {options.merge_to} exists already.")
    with user_choices():
        documents = load_documents(options.data_path)
    output = new_folder(options.output_dir)
    device = chosen_device(options)
    measured = memory.of(device, options.backend)
    measured.settle()

    with timed(seconds, "load"):
        model, preprocessor = load(options.base_model)
        data = prepare(documents, preprocessor.tokenizer, options)
    with timed(seconds, "adapt"):
        if options.quantize:
            quantize(model, options.quantize)
        trained = adapt(model, options)
    steps = number_of_steps(options, len(data.training.token_ids))
    compile_for(model, steps, options)
    progress = Progress()
    if checkpoint is not None:
        progress = restore(checkpoint, model, settings(options, data))
    show_plan(trained, steps, data, progress)

    with timed(seconds, "train"):
        train(model, data, progress, steps, options)
    peak = measured.peak()
    if options.merge_to is not None:
        del model
        with timed(seconds, "merge"):
            merge(options, output / ADAPTER)

    record = {
        "options": {name: as_json(v) for name, v in vars(options).items()},
        "machine": {"device": device, **machine.describe()},
        "trained": trained,
        "rows": {name: len(w.token_ids) for name, w in data._asdict().items() if w},
        "planned_steps": steps,
        **dataclasses.asdict(progress),
        "best": progress.best if progress.validation else None,
        "seconds": {**seconds, "train": round(progress.seconds, 2)},
        "peak_bytes": peak,
    }
    (output / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    plot(output / "curves.png", progress, options)
    for finished in checkpoints(output):
        shutil.rmtree(finished)
    show_results(output, progress, options)


# Options.


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = OneLineParser(
        prog="randlora_finetuning.py",
        description=__doc__.splitlines()[0],
        formatter_class=DefaultsHelp,
    )
    add = parser.add_argument
    names = ", ".join(LANGUAGE_MODELS)
    add("--backend", choices=BACKENDS, default="jax", help="what Keras runs on")
    add("--device", choices=("cpu", "gpu"), help="default: a GPU if there is one")
    add(
        "--base_model",
        default="smollm2",
        help=f"{names}; or a keras-hub preset, hf://…, kaggle://…, folder",
    )
    add(
        "--data_path",
        type=Path,
        help="Alpaca records (.json, .jsonl) or plain text; default: Python's own help",
    )
    add("--output_dir", type=Path, default=Path("randlora-output"), help="results")
    add("--batch_size", type=positive(int), default=4, help="rows per step")
    add(
        "--gradient_accumulation_steps",
        type=positive(int),
        default=1,
        help="passes per step: less memory, the same steps",
    )
    add("--num_epochs", type=positive(float), default=1, help="number of epochs")
    add("--max_steps", type=positive(int), help="maximum number of steps")
    add("--learning_rate", type=positive(float), default=3e-4, help="peak value")
    add("--cutoff_len", type=positive(int), default=256, help="tokens per row")
    add(
        "--val_set_size",
        type=count_or_fraction,
        default=64,
        help="records for validation: a count, or a fraction below 1; 0 for none",
    )
    add("--eval_step", type=positive(int), default=50, help="steps between validations")
    add("--save_step", type=positive(int), default=100, help="steps per checkpoint")
    add(
        "--patience",
        type=positive(int),
        help="validations without a lower loss before early stopping",
    )
    add("--rank", type=positive(int), default=32, help="rank of each basis")
    add("--randlora_alpha", type=positive(float), help="default: 20 times the rank")
    add("--randlora_dropout", type=float, default=0.0, help="on the adapter's input")
    add(
        "--randlora_target_modules",
        help="names, globs, attention, mlp, all-linear, separated by commas; "
        "default: the model's own choice",
    )
    bases = parser.add_mutually_exclusive_group()
    bases.add_argument("--basis", help="distribution of the bases; default: uniform")
    for name in ("sparse", "very_sparse"):
        bases.add_argument(
            f"--{name}",
            dest="basis",
            action="store_const",
            const=name,
            default=argparse.SUPPRESS,
            help=f"the same as --basis {name}",
        )
    add("--use_lora", action="store_true", help="Keras's own LoRA, for comparison")
    add(
        "--quantize",
        nargs="?",
        choices=("int8", "int4"),
        const="int4",
        help="quantize the frozen kernels to 8 or 4 bits",
    )
    add("--seed", type=int, default=0, help="of the bases and the order of the rows")
    add("--resume", action="store_true", help="resume from the last checkpoint")
    add("--merge_to", type=Path, help="also write the merged model: folder or .keras")
    add("--tensorboard", type=Path, metavar="DIR", help="log for TensorBoard")
    add(
        "--wandb",
        nargs="?",
        const="keras-randlora",
        metavar="PROJECT",
        help="log to Weights & Biases",
    )
    options = parser.parse_args(arguments)
    check_together(parser, options)
    return options


def check_together(parser: OneLineParser, options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if options.save_step % options.eval_step:
        parser.error(
            "--save_step must be a multiple of --eval_step. Received: "
            f"{options.save_step} and {options.eval_step}"
        )
    if options.batch_size % options.gradient_accumulation_steps:
        parser.error(
            "--batch_size must be a multiple of --gradient_accumulation_steps. "
            f"Received: {options.batch_size} and {options.gradient_accumulation_steps}"
        )
    if options.patience and not options.val_set_size:
        parser.error("--patience needs validation. Received: --val_set_size 0")
    if options.use_lora:
        own = ("basis", "randlora_alpha", "randlora_dropout", "merge_to")
        for name in own:
            if getattr(options, name):
                parser.error(f"--{name} belongs to RandLoRA: drop it or --use_lora")


def count_or_fraction(text: str) -> float:
    """Return a count, or a fraction below 1, or 0."""
    value = float(text)
    if value < 0 or not math.isfinite(value) or (value > 1 and value % 1):
        raise argparse.ArgumentTypeError(
            f"must be a count, a fraction below 1, or 0. Received: {text}"
        )
    return value


def require_packages(options: argparse.Namespace) -> None:
    """Check that the loggers are installed, before the work begins."""
    needed = {"tensorboard": ("tensorflow", "tensorboard"), "wandb": ("wandb",)}
    for option, packages in needed.items():
        for package in packages:
            if getattr(options, option) and importlib.util.find_spec(package) is None:
                raise UserError(
                    f"--{option} needs a package that is not installed: pip install "
                    f"{package}"
                )


def chosen_device(options: argparse.Namespace) -> str:
    """Return `"gpu"` if the backend has one, else `"cpu"`."""
    found = has_gpu(options.backend)
    if options.device == "gpu" and not found:
        raise UserError(
            f"--device gpu: {options.backend} sees no GPU. Install it with support for "
            "yours, or pass --device cpu."
        )
    return "gpu" if found else "cpu"


def has_gpu(backend: str) -> bool:
    """Return whether a backend sees a GPU."""
    if backend == "torch":
        import torch

        return torch.cuda.is_available()
    import keras

    try:
        return bool(keras.distribution.list_devices("gpu"))
    except RuntimeError:  # JAX, where there is none
        return False


# Data.


def prepare(
    documents: Sequence[Document], tokenizer: Tokenizer, options: argparse.Namespace
) -> Data:
    """Return rows of `cutoff_len` tokens from records or plain text."""
    length = options.cutoff_len
    with user_choices():
        if any(document.prompt for document in documents):
            training, kept_back = set_aside(documents, options.val_set_size)
            parts = [answer_rows(x, tokenizer, length) for x in (training, kept_back)]
        else:
            training, kept_back = set_text_aside(documents, options.val_set_size)
            parts = [pack(x, tokenizer, length) for x in (training, kept_back) if x]
    validation = parts[1] if kept_back else None
    if validation is not None:
        if options.val_set_size >= 1:
            validation = validation.spread(int(options.val_set_size))
        validation = whole_batches(validation, options.batch_size)
    scaled = parts[0]._replace(weights=unit_mean(parts[0].weights))
    return Data(scaled, validation)


def set_aside(
    documents: Sequence[Document], size: float
) -> tuple[list[Document], list[Document]]:
    """Hold out records for validation, evenly; equal ones leave the training set."""
    total = len(documents)
    count = round(size * total) if size < 1 else int(size)
    if size and not 0 < count < total:
        raise UserError(
            f"--val_set_size {size:g} leaves nothing to train or to validate on. "
            f"Received: {total} records."
        )
    chosen = np.linspace(0, total - 1, count).round().astype(int)
    kept_back = dict.fromkeys(documents[i] for i in chosen)
    return [d for d in documents if d not in kept_back], list(kept_back)


def set_text_aside(
    documents: Sequence[Document], size: float
) -> tuple[list[Document], list[Document]]:
    """Hold out a fraction of plain text for validation; a tenth if a count is given."""
    if not size:
        return list(documents), []
    return split(documents, size if size < 1 else HELD_OUT_FRACTION)


def answer_rows(
    documents: Sequence[Document], tokenizer: Tokenizer, length: int
) -> Windows:
    """Return a row for each document, and print how many did not fit.

    Args:
        documents: Prompts with answers; none gives no row.
        tokenizer: A keras-hub tokenizer.
        length: Tokens of a row.
    """
    pairs = [encode(document, tokenizer) for document in documents]
    made = rows(pairs, length, tokenizer)
    if too_long := sum(
        len(prompt) + len(answer) > length + 1 for prompt, answer in pairs
    ):
        print(
            f"{too_long} of {len(pairs)} records are longer than {length} tokens and "
            f"were cut; {len(pairs) - len(made.token_ids)} of them have no answer left "
            "and are not used."
        )
    if documents and not len(made.token_ids):
        raise UserError(
            f"Every prompt alone fills a row. Received: --cutoff_len {length}; the "
            f"shortest prompt has {min(len(prompt) for prompt, _ in pairs)} tokens."
        )
    return made


def order_of_rows(seed: int, total: int) -> Iterator[int]:
    """Yield row indices without end, shuffled again for each epoch."""
    generator = np.random.default_rng(seed)
    while True:
        yield from generator.permutation(total)


# Model.


def quantize(model: Any, mode: str) -> None:
    """Quantize every layer that can be."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Layer .* does not have a `quantize`")
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
    """Compile with a schedule: warm-up over a tenth of the steps, then decay to zero.

    Keras counts each pass of a step for the schedule.
    """
    import keras

    passes = options.gradient_accumulation_steps
    steps *= passes
    warmup = max(1, steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=options.learning_rate / warmup,
        warmup_target=options.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(1, steps - warmup),
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(
            schedule,
            weight_decay=0,
            global_clipnorm=1.0,
            gradient_accumulation_steps=passes if passes > 1 else None,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )


def merge(options: argparse.Namespace, adapter: Path) -> None:
    """Save the base with the best adapter merged, in floating point."""
    import keras_randlora as kr

    model, preprocessor = load(options.base_model)
    kr.load_adapter(model, adapter)
    one_file = options.merge_to.suffix == ".keras"
    if not one_file:
        model.preprocessor = preprocessor  # the tokenizer goes into the folder
    with user_choices():
        kr.export_merged(model, options.merge_to, "keras" if one_file else "preset")


# Training.


def settings(options: argparse.Namespace, data: Data) -> dict[str, Any]:
    """Return the options that a resumed run must share with the interrupted one."""
    shared = {n: as_json(v) for n, v in vars(options).items() if n not in FREE}
    content = np.ascontiguousarray(data.training.token_ids)
    return {**shared, "checksum of the data": zlib.crc32(content)}


def train(
    model: Any,
    data: Data,
    progress: Progress,
    steps: int,
    options: argparse.Namespace,
) -> None:
    """Train from `progress` on, and update it.

    Each call of `fit` trains up to the next evaluation.
    """
    order = order_of_rows(options.seed, len(data.training.token_ids))
    for _ in range(progress.step * options.batch_size):
        next(order)
    added = loggers(options)
    best = options.output_dir / ADAPTER
    if data.validation is not None and not progress.validation:
        progress.validation.append((0, evaluate(model, data.validation, options)))
    spent: dict[str, float] = {}
    while progress.step < steps:
        count = min(options.eval_step, steps - progress.step)
        chosen = [next(order) for _ in range(count * options.batch_size)]
        print(f"Steps {progress.step + 1} to {progress.step + count} of {steps}")
        with timed(spent, "fit"):
            losses, validation = fit(
                model,
                Windows(*(array[chosen] for array in data.training)),
                data.validation,
                progress.step // options.eval_step,
                added,
                options,
            )
        progress.step += count
        progress.training += losses
        progress.seconds += spent["fit"]
        if not np.all(np.isfinite(losses)):
            raise UserError(
                f"The loss is not finite any more by step {progress.step}: choose a "
                "lower --learning_rate."
            )
        if validation is not None:
            progress.validation.append((progress.step, validation))
            progress.waited += 1
            if validation < progress.best:
                progress.best, progress.waited = validation, 0
                save_adapter(model, best, options)
            if progress.waited == options.patience:
                print(
                    f"No lower validation loss in {progress.waited} validations: stop."
                )
                break
        if progress.step % options.save_step == 0 and progress.step < steps:
            save_checkpoint(model, progress, settings(options, data), options)
    if data.validation is None:
        save_adapter(model, best, options)


def reseed(model: Any, seed: int, number: int) -> None:
    """Let dropout depend only on the call of `fit`, not on earlier ones."""
    import keras

    generator = np.random.default_rng((seed, number))
    keras.utils.set_random_seed(int(generator.integers(2**32)))  # torch's dropout
    weights = {id(weight) for weight in model.weights}
    for variable in model.variables:
        if id(variable) not in weights:  # the state of a generator: seed and counter
            variable.assign([int(generator.integers(2**31)), 0])


def fit(
    model: Any,
    windows: Windows,
    validation: Windows | None,
    number: int,
    added: list[Any],
    options: argparse.Namespace,
) -> tuple[list[float], float | None]:
    """Train for one epoch of rows; return each step's loss, and the validation loss."""
    import keras

    means: list[float] = []
    recorder = keras.callbacks.LambdaCallback(
        # Not before: building a model may draw random numbers too.
        on_epoch_begin=lambda *_: reseed(model, options.seed, number),
        on_train_batch_end=lambda step, logs: means.append(float(logs["loss"])),
    )
    history = model.fit(
        windows.inputs,
        windows.targets,
        sample_weight=windows.weights,
        batch_size=options.batch_size // options.gradient_accumulation_steps,
        shuffle=False,
        initial_epoch=number,
        epochs=number + 1,
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


def show_plan(trained: int, steps: int, data: Data, progress: Progress) -> None:
    """Print the size of the run."""
    held = 0 if data.validation is None else len(data.validation.token_ids)
    print(
        f"{trained:,} trainable parameters, {len(data.training.token_ids):,} rows of "
        f"{data.training.token_ids.shape[1]} tokens, {held:,} to validate on, "
        f"{steps:,} steps."
    )
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
