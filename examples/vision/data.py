"""Pictures and their labels: scanned digits, or a folder of pictures for each class.

The digits are the 1,797 handwritten ones of 8 × 8 pixels that scikit-learn ships. A
model is pretrained on them as they are and fine-tuned on them `disturbed`.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.command_line import UserError

DIGITS = "datasets/data/digits.csv.gz"  # in the package
BRIGHTEST = 16  # of the digits' pixels
VALIDATION_SHARE, TEST_SHARE = 0.15, 0.3


class Pictures(NamedTuple):
    """Pictures and their labels.

    Attributes:
        pixels: `(n, height, width, 3)` uint8.
        labels: `(n,)` int32.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> "Pictures":
        """Return the pictures of these rows, in their order."""
        return Pictures(self.pixels[rows], self.labels[rows])


class Parts(NamedTuple):
    """Learned from, chosen the learning rate by, and judged by at the end."""

    train: Pictures
    validation: Pictures
    test: Pictures


def digits(path: Path | None = None) -> Pictures:
    """Return scikit-learn's digits as they are, bright on dark.

    Args:
        path: The file `digits.csv.gz`, by default that of the installed package,
            which is not imported.

    Raises:
        UserError: There is no such file.
    """
    path = path or _installed()
    try:
        table = np.loadtxt(path, delimiter=",", dtype="float32", ndmin=2)
    except OSError as error:
        raise UserError(f"Cannot read the digits: {error}.") from error
    grey = (table[:, :-1] * (255 / BRIGHTEST)).round().astype("uint8")
    grey = grey.reshape(-1, 8, 8, 1)
    return Pictures(np.repeat(grey, 3, axis=-1), table[:, -1].astype("int32"))


def disturbed(pictures: Pictures) -> Pictures:
    """Return the pictures a quarter turned and as negatives: another camera's."""
    pixels = 255 - np.rot90(pictures.pixels, axes=(1, 2))
    return Pictures(pixels, pictures.labels)


def from_folder(
    folder: Path, size: tuple[int, int]
) -> tuple[Pictures, tuple[str, ...]]:
    """Return the pictures of `folder/CLASS/*` and the names of the classes.

    Args:
        folder: PNG, JPEG, BMP or GIF files in a folder for each class.
        size: Height and width that the pictures are cropped and scaled to.

    Raises:
        UserError: There are no pictures of two classes.
    """
    import keras

    try:
        dataset = keras.utils.image_dataset_from_directory(
            folder, image_size=size, crop_to_aspect_ratio=True, shuffle=False, verbose=0
        )
        names = tuple(dataset.class_names)
    except (ValueError, OSError) as error:
        raise UserError(f"Cannot read pictures of {folder}: {error}") from error
    if len(names) < 2:
        raise UserError(
            "A folder for each of at least two classes is needed. Received: "
            f"{folder} with {', '.join(names) or 'none'}."
        )
    batches = [(x.numpy().round().astype("uint8"), y.numpy()) for x, y in dataset]
    pixels, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    return Pictures(pixels, labels.astype("int32")), names


def split(pictures: Pictures) -> Parts:
    """Return three parts, the same pictures in them each time."""
    count = len(pictures.labels)
    rows = np.random.default_rng(0).permutation(count)
    test, validation = (
        round(share * count) for share in (TEST_SHARE, VALIDATION_SHARE)
    )
    if not 0 < validation < test + validation < count:
        raise UserError(f"Too few pictures to divide in three. Received: {count}.")
    parts = np.split(rows, [test, test + validation])
    return Parts(*(pictures.take(part) for part in reversed(parts)))


def shifted(pictures: Pictures, seed: int) -> Pictures:
    """Return the pictures moved by up to one pixel, each at random."""
    rng = np.random.default_rng([seed, 3])
    padded = np.pad(pictures.pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    _, height, width, _ = pictures.pixels.shape
    pixels = [
        picture[y : y + height, x : x + width]
        for picture, (y, x) in zip(
            padded, rng.integers(0, 3, (len(padded), 2)), strict=True
        )
    ]
    return Pictures(np.stack(pixels), pictures.labels)


def _installed() -> Path:
    """Return the digits' file in scikit-learn, without importing it."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The digits come in the package scikit-learn, which is not installed. "
            "Install it with: pip install scikit-learn"
        )
    return Path(spec.submodule_search_locations[0]) / DIGITS
