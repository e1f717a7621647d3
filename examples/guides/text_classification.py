"""Text classification: fine-tune BERT with an adapter and a new head.

python examples/guides/text_classification.py
"""

# --8<-- [start:load]
import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np

import keras_randlora as kr

CLASSES = ["negative", "positive"]
classifier = keras_hub.models.BertTextClassifier.from_preset(
    "bert_base_en", num_classes=len(CLASSES)
)
classifier.preprocessor.sequence_length = 32
# --8<-- [end:load]

# --8<-- [start:data]
texts = [
    "a warm and funny film",
    "dull from the first scene to the last",
    "the best thing I have seen this year",
    "a waste of two hours",
    "beautifully played and never sentimental",
    "the jokes are old and the plot is older",
    "clever, quick and moving",
    "I left before the end",
]
labels = np.array([1, 0, 1, 0, 1, 0, 1, 0])  # positions in CLASSES
held_out = [
    "a clever and funny film",
    "two dull hours",
    "moving and beautifully made",
    "old jokes, no plot",
]
held_out_labels = np.array([1, 0, 1, 0])
# --8<-- [end:data]

# --8<-- [start:enable]
report = classifier.enable_randlora(
    rank=16,
    alpha=2 * 16,
    targets="all-linear",
    exclude=["pooled_dense"],
    also_train=["pooled_dense", "logits"],
    basis="kronecker",
)
print(report)
# --8<-- [end:enable]

# --8<-- [start:fit]
classifier.compile(
    optimizer=keras.optimizers.AdamW(1e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
best = kr.RandLoRACheckpoint(
    "sentiment.safetensors", save_best_only=True, metadata={"class_names": CLASSES}
)
early = keras.callbacks.EarlyStopping("val_loss", patience=2)
order = np.random.default_rng(0).permutation(len(texts))  # keras-hub does not shuffle
history = classifier.fit(
    [texts[i] for i in order],
    labels[order],
    batch_size=4,
    epochs=10,
    validation_data=(held_out, held_out_labels),
    callbacks=[best, early],
)
# --8<-- [end:fit]

# --8<-- [start:best]
kr.load_adapter(classifier, "sentiment.safetensors")  # of the epoch with the best loss
predicted = classifier.predict(held_out, batch_size=4).argmax(axis=-1)
confusion = np.zeros((len(CLASSES), len(CLASSES)), int)
np.add.at(confusion, (held_out_labels, predicted), 1)
print(f"Held-out accuracy: {np.trace(confusion) / len(held_out):.0%}")
# --8<-- [end:best]

# --8<-- [start:confusion]
figure, axes = plt.subplots(figsize=(3.5, 3))
axes.imshow(confusion, cmap="Blues")
for (row, column), count in np.ndenumerate(confusion):
    axes.text(column, row, count, ha="center", va="center")
axes.set_xticks(range(len(CLASSES)), CLASSES)
axes.set_yticks(range(len(CLASSES)), CLASSES)
axes.set(xlabel="predicted", ylabel="true")
figure.savefig("confusion.png", bbox_inches="tight")
# --8<-- [end:confusion]

# --8<-- [start:ship]
kr.export_merged(classifier, "sentiment.keras", format="keras")
# --8<-- [end:ship]
