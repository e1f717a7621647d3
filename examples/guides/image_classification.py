"""Image classification: fine-tune a vision transformer on three kinds of stripes.

python examples/guides/image_classification.py
"""

# --8<-- [start:load]
import keras
import keras_hub
import numpy as np

import keras_randlora as kr

classifier = keras_hub.models.ViTImageClassifier.from_preset(
    "vit_base_patch16_224_imagenet", num_classes=3
)
# --8<-- [end:load]


# --8<-- [start:data]
def stripes(count, size=224, seed=0):
    """Return images `(count, size, size, 3)` of 0 to 255, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)  # 0: level, 1: upright, 2: slanting
    row, column = np.mgrid[:size, :size]
    waves = np.stack([row, column, row + column])[labels]
    period = rng.integers(8, 16, (count, 1, 1))
    bright = (waves // period) % 2
    colours = rng.integers(0, 256, (2, count, 1, 1, 3))
    return np.where(bright[..., None], *colours).astype("float32"), labels


images, labels = stripes(32)
# --8<-- [end:data]

# --8<-- [start:enable]
report = classifier.enable_randlora(
    rank=32, targets="attention", also_train=["predictions"], basis="kronecker"
)
print(report)
# --8<-- [end:enable]

# --8<-- [start:fit]
classifier.compile(
    optimizer=keras.optimizers.AdamW(1e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = classifier.fit(images, labels, batch_size=8, epochs=5)
# --8<-- [end:fit]

# --8<-- [start:check]
unseen, expected = stripes(16, seed=1)
with kr.merged(classifier):  # plain layers with merged kernels, for the block
    found = classifier.predict(unseen, batch_size=8).argmax(axis=-1)
print(f"Held-out accuracy: {(found == expected).mean():.0%}")
# --8<-- [end:check]

# --8<-- [start:ship]
kr.save_adapter(classifier, "stripes.safetensors")
# --8<-- [end:ship]
