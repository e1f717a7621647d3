"""Image classifiers of keras-hub: a small one to pretrain here, or any ViT preset."""

import json
from pathlib import Path

import keras
import keras_hub
import numpy as np

from examples.command_line import UserError

HEAD = "predictions"  # keras-hub's name for the last layer


def small_vit(
    side: int, classes: int, blocks: int = 3
) -> tuple[keras.Model, keras.layers.Layer]:
    """Return a vision transformer, 96 wide, with random weights, and its converter.

    Args:
        side: Height and width of the images, seen as patches of 2 × 2.
        classes: Number of classes.
        blocks: Number of blocks.
    """
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(side, side, 3),
        patch_size=2,
        num_layers=blocks,
        num_heads=4,
        hidden_dim=96,
        mlp_dim=192,
    )
    converter = keras_hub.layers.ViTImageConverter(
        image_size=(side, side), scale=[2 / 255] * 3, offset=[-1.0] * 3
    )
    model = keras_hub.models.ViTImageClassifier(backbone, num_classes=classes)
    return model, converter


def attach(converter: keras.layers.Layer, model: keras.Model) -> None:
    """Let a model, and so its preset, convert its images itself."""
    model.preprocessor = keras_hub.models.ViTImageClassifierPreprocessor(converter)


def load(preset: str, classes: int) -> tuple[keras.Model, keras.layers.Layer]:
    """Return a classifier of converted images, and its image converter.

    The preset's own head stays if the preset is a folder and its head has as many
    classes; otherwise the head is new.

    Args:
        preset: A folder, or a preset of keras-hub such as
            `vit_base_patch16_224_imagenet`, `hf://…`, `kaggle://…`.
        classes: Number of classes.

    Raises:
        UserError: There is no such preset of a vision transformer.
    """
    head = {} if _classes_of(preset) == classes else {"num_classes": classes}
    try:
        model = keras_hub.models.ViTImageClassifier.from_preset(
            preset, preprocessor=None, **head
        )
    except (ValueError, OSError) as error:
        raise _not_loaded(preset, error) from error
    return model, load_converter(preset)


def load_converter(preset: str) -> keras.layers.Layer:
    """Return the preset's converter of images with values from 0 to 255.

    Raises:
        UserError: There is no such preset of a vision transformer.
    """
    try:
        return keras_hub.layers.ViTImageConverter.from_preset(preset)
    except (ValueError, OSError) as error:
        raise _not_loaded(preset, error) from error


def converted(converter: keras.layers.Layer, pixels: np.ndarray) -> np.ndarray:
    """Return images `(n, height, width, 3)` as the model takes them, float32."""
    return keras.ops.convert_to_numpy(converter(pixels.astype("float32")))


def logits(
    model: keras.Model,
    converter: keras.layers.Layer,
    pixels: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """Return `(n, classes)` float64 for images `(n, height, width, 3)`."""
    count = len(pixels)
    rows = np.arange(-(-count // batch_size) * batch_size) % count  # one shape for all
    found = [
        model.predict_on_batch(converted(converter, pixels[part]))
        for part in rows.reshape(-1, batch_size)
    ]
    return np.concatenate(found)[:count].astype("float64")


def _not_loaded(preset: str, error: Exception) -> UserError:
    return UserError(
        f"No vision transformer could be loaded. Received: preset={preset!r}; "
        f"`pretrain` and `dinov2` write one to `--folder`. keras-hub says: {error}"
    )


def _classes_of(preset: str) -> int | None:
    """Return the number of classes of the head in a preset's folder."""
    task = Path(preset) / "task.json"
    if not task.is_file():
        return None
    return json.loads(task.read_text("utf-8"))["config"].get("num_classes")
