"""Images and their labels: scanned digits, or a folder of images for each class.

The digits are the 1,797 handwritten ones of 8 × 8 pixels in scikit-learn. A model is
pretrained on the original digits and fine-tuned on `disturbed` ones.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.command_line import UserError

DIGITS = "datasets/data/digits.csv.gz"  # in the package
BRIGHTEST = 16  # of the digits' pixels
VALIDATION_SHARE, TEST_SHARE = 0.15, 0.3


class Images(NamedTuple):
    """Images and their labels.

    Attributes:
        pixels: `(n, height, width, 3)` uint8.
        labels: `(n,)` int32.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def take(self, rows: np.ndarray) -> "Images":
        """Return the images of these rows, in their order."""
        return Images(self.pixels[rows], self.labels[rows])


class Parts(NamedTuple):
    """Training set, validation set for the learning rate, and test set."""

    train: Images
    validation: Images
    test: Images


def digits(path: Path | None = None) -> Images:
    """Return scikit-learn's digits, bright on dark.

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
    return Images(np.repeat(grey, 3, axis=-1), table[:, -1].astype("int32"))


def disturbed(pictures: Images) -> Images:
    """Return the images rotated by 90° and inverted."""
    pixels = 255 - np.rot90(pictures.pixels, axes=(1, 2))
    return Images(pixels, pictures.labels)


def from_folder(folder: Path, size: tuple[int, int]) -> tuple[Images, tuple[str, ...]]:
    """Return the images of `folder/CLASS/*` and the names of the classes.

    Args:
        folder: PNG, JPEG, BMP or GIF files in a folder for each class.
        size: Height and width that the images are cropped and scaled to.

    Raises:
        UserError: There are no images of two classes.
    """
    import keras

    try:
        dataset = keras.utils.image_dataset_from_directory(
            folder, image_size=size, crop_to_aspect_ratio=True, shuffle=False, verbose=0
        )
        names = tuple(dataset.class_names)
    except (ValueError, OSError) as error:
        raise UserError(f"Cannot read images of {folder}: {error}") from error
    if len(names) < 2:
        raise UserError(
            "A folder for each of at least two classes is needed. Received: "
            f"{folder} with {', '.join(names) or 'none'}."
        )
    batches = [(x.numpy().round().astype("uint8"), y.numpy()) for x, y in dataset]
    pixels, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
    return Images(pixels, labels.astype("int32")), names


def split(pictures: Images) -> Parts:
    """Return the training, validation and test sets, the same each time."""
    count = len(pictures.labels)
    rows = np.random.default_rng(0).permutation(count)
    test, validation = (
        round(share * count) for share in (TEST_SHARE, VALIDATION_SHARE)
    )
    if not 0 < validation < test + validation < count:
        raise UserError(f"Too few images for three sets. Received: {count}.")
    parts = np.split(rows, [test, test + validation])
    return Parts(*(pictures.take(part) for part in reversed(parts)))


def shifted(pictures: Images, seed: int) -> Images:
    """Return the images, each shifted at random by up to one pixel."""
    rng = np.random.default_rng([seed, 3])
    padded = np.pad(pictures.pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    _, height, width, _ = pictures.pixels.shape
    pixels = [
        picture[y : y + height, x : x + width]
        for picture, (y, x) in zip(
            padded, rng.integers(0, 3, (len(padded), 2)), strict=True
        )
    ]
    return Images(np.stack(pixels), pictures.labels)


def _installed() -> Path:
    """Return the digits' file in scikit-learn, without importing it."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The digits come in the package scikit-learn, which is not installed. "
            "Install it with: pip install scikit-learn"
        )
    return Path(spec.submodule_search_locations[0]) / DIGITS
