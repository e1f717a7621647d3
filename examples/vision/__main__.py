"""Image classification: a vision transformer with RandLoRA, LoRA and full fine-tuning.

`pretrain` trains a small model on scanned digits; `dinov2` takes a pretrained one from
a wheel. Both write a preset of keras-hub to `--folder`. `compare` fine-tunes it with
every method on rotated and inverted digits. It writes a line of `--out` for each run;
runs in the file are not repeated. `tables` prints the file. `predict` fine-tunes,
merges, exports, and plots the predictions of the exported model.

Use `--images` and `--preset` for your own images and another model.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from examples import runs
from examples.classification import accuracy_and_loss
from examples.command_line import (
    BACKENDS,
    OneLineParser,
    ParagraphsHelp,
    UserError,
    exit_status,
    positive,
    user_choices,
)
from examples.vision import comparison, data

FOLDER = Path("runs/vision")
OUT = FOLDER / "runs.jsonl"
PUBLISHED = Path(__file__).with_name("runs.jsonl")
DIGITS = tuple("0123456789")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = OneLineParser(
        prog="python -m examples.vision",
        description=__doc__,
        formatter_class=ParagraphsHelp,
    )
    add = parser.add_argument
    add("command", choices=COMMANDS)
    add("--backend", choices=BACKENDS, default="jax", help="what Keras runs on")
    add("--folder", type=Path, default=FOLDER / "small", help="of the pretrained model")
    add("--preset", help="a ViT preset of keras-hub, instead of the folder")
    add("--images", type=Path, help="images in IMAGES/CLASS/*, instead of digits")
    add("--digits", type=Path, help="digits.csv.gz, if not in scikit-learn installed")
    add("--out", type=Path, default=OUT, help="file of the records")
    add("--steps", type=positive(int), default=200, help="optimizer steps of a run")
    add("--batch-size", type=positive(int), default=32, help="images per step")
    add = parser.add_argument_group("pretrain").add_argument
    add("--pretrain-steps", type=positive(int), default=1000, help="of 64 images")
    add = parser.add_argument_group("compare").add_argument
    add("--methods", nargs="+", default=comparison.METHODS, help="what to compare")
    add("--seeds", type=positive(int), default=3, help="runs of each method")
    add(
        "--rates",
        nargs="+",
        type=positive(float),
        default=comparison.RATES,
        help="learning rates that each method tries",
    )
    add = parser.add_argument_group("predict").add_argument
    add("--method", default="randlora-as-lora-16", help="randlora-… or vera-…")
    add(
        "--learning-rate", type=positive(float), help="instead of the one chosen before"
    )
    add("--output", type=Path, default=FOLDER / "predict", help="folder to write to")
    add = parser.add_argument_group("dinov2").add_argument
    add("--side", type=int, default=56, help="pixels of its images, 14 per patch")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    given = parse_arguments(arguments)
    os.environ["KERAS_BACKEND"] = given.backend  # read when Keras is imported
    return exit_status(
        "python -m examples.vision", lambda: COMMANDS[given.command](given)
    )


def pretrain(given: argparse.Namespace) -> None:
    """Train the small model on the original digits, and write its preset."""
    import keras

    from examples.vision import model, train

    parts = data.split(data.digits(given.digits))
    keras.utils.set_random_seed(0)
    classifier, converter = model.small_vit(side=8, classes=len(DIGITS))
    train.pretrain(classifier, converter, parts.train, steps=given.pretrain_steps)
    for name, pictures in (
        ("the digits", parts.validation),
        ("rotated and inverted digits", data.disturbed(parts.validation)),
    ):
        outputs = model.logits(classifier, converter, pictures.pixels, 64)
        accuracy, _ = accuracy_and_loss(outputs, pictures.labels)
        print(f"Validation accuracy on {name}: {accuracy:.1%}")
    plain, _ = model.small_vit(side=8, classes=len(DIGITS))  # without an optimizer
    plain.set_weights(classifier.get_weights())
    model.attach(converter, plain)
    plain.save_to_preset(str(given.folder))
    print(f"Pretrained model: {given.folder} (preset of keras-hub)")


def write_dinov2(given: argparse.Namespace) -> None:
    """Write the preset of DINOv2-small."""
    from examples.vision import dinov2

    dinov2.write(given.folder, given.side)
    print(f"DINOv2-small: {given.folder} (preset of keras-hub)")


def compare(given: argparse.Namespace) -> None:
    """Choose learning rates, then fine-tune with every method."""
    common = common_of(given)
    parts, names = pictures_of(given)
    first = comparison.tuning(common, given.methods, given.rates)
    from examples.vision import train

    with train.shared_programs():
        run_all(first, given, parts, names)
        tried = runs.read(given.out)
        final = comparison.judged(common, given.methods, given.seeds, tried)
        run_all(final, given, parts, names)
    show_tables(given)


def run_all(
    plans: Sequence[comparison.Run],
    given: argparse.Namespace,
    parts: data.Parts,
    names: tuple[str, ...],
) -> None:
    """Run what is not in the file yet."""
    from examples.vision import train

    for number, plan in enumerate(plans, 1):
        record = runs.run_once(
            given.out, lambda p=plan: train.run(p, parts, len(names)), **vars(plan)
        )
        print(
            f"{plan.part} {number}/{len(plans)}: {plan.method}, seed {plan.seed}, "
            f"learning rate {plan.learning_rate:g}: accuracy {record['accuracy']:.3f}, "
            f"loss {record['loss']:.3f}; {record['seconds']:.0f} s",
            flush=True,
        )


def show_tables(given: argparse.Namespace) -> None:
    """Print the tables of all records."""
    with user_choices():
        records = runs.to_show(given.out, PUBLISHED)
    print(comparison.tables(records))


def predict(given: argparse.Namespace) -> None:
    """Fine-tune, merge, export and classify the test set."""
    if not given.method.startswith(("randlora-", "vera-")):
        raise UserError(
            "`--method` must be randlora-… or vera-…, which RandLoRA can merge. "
            f"Received: {given.method!r}."
        )
    common = common_of(given)
    rate = given.learning_rate or comparison.chosen_rate(
        common, given.method, runs.read(given.out)
    )
    plan = dataclasses.replace(
        common, part="test", method=given.method, learning_rate=rate
    )
    parts, names = pictures_of(given)
    from examples.vision import prediction

    merged, picture = given.output / "merged", given.output / "predictions.png"
    answers = prediction.predict(plan, parts, len(names), merged)
    prediction.draw(parts.test, answers, names, picture)
    for when, found in (("before", answers.before), ("after", answers.after)):
        accuracy = (found == parts.test.labels).mean()
        print(f"Test accuracy {when} fine-tuning: {accuracy:.1%}")
    print(f"Merged model: {merged} (preset of keras-hub)")
    print(f"Largest logit difference from the adapted model: {answers.difference:.1e}")
    print(f"Images with their labels: {picture}")


def common_of(given: argparse.Namespace) -> comparison.Run:
    """Return what all runs of a call have in common; the rest is empty."""
    return comparison.Run(
        part="",
        method="",
        seed=0,
        learning_rate=0.0,
        steps=given.steps,
        batch_size=given.batch_size,
        preset=given.preset or str(given.folder),
        pictures=str(given.images or "digits"),
        backend=given.backend,
    )


def pictures_of(given: argparse.Namespace) -> tuple[data.Parts, tuple[str, ...]]:
    """Return the images to fine-tune on, and the names of their classes."""
    if given.images is None:
        return data.split(data.disturbed(data.digits(given.digits))), DIGITS
    from examples.vision import model

    converter = model.load_converter(given.preset or str(given.folder))
    pictures, names = data.from_folder(given.images, converter.image_size)
    return data.split(pictures), names


COMMANDS = {
    "pretrain": pretrain,
    "dinov2": write_dinov2,
    "compare": compare,
    "tables": show_tables,
    "predict": predict,
}

if __name__ == "__main__":
    sys.exit(main())
