"""Text classification: fine-tune BERT with an adapter and a new head.

python examples/guides/text_classification.py
"""

# --8<-- [start:load]
import keras
import keras_hub
import numpy as np

import keras_randlora as kr

classifier = keras_hub.models.BertTextClassifier.from_preset(
    "bert_base_en", num_classes=2
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
labels = np.array([1, 0, 1, 0, 1, 0, 1, 0])  # 1: the writer liked it
# --8<-- [end:data]

# --8<-- [start:enable]
report = classifier.enable_randlora(
    rank=16,
    alpha=2 * 16,
    targets="all-linear",
    exclude=["pooled_dense"],
    also_train=["pooled_dense", "logits"],
)
print(report)
# --8<-- [end:enable]

# --8<-- [start:fit]
classifier.compile(
    optimizer=keras.optimizers.AdamW(1e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = classifier.fit(texts, labels, batch_size=4, epochs=5)
# --8<-- [end:fit]

# --8<-- [start:predict]
logits = classifier.predict(["a clever and funny film", "two dull hours"])
print(logits.argmax(axis=-1))
# --8<-- [end:predict]

# --8<-- [start:ship]
kr.save_adapter(classifier, "sentiment.safetensors")  # λ, γ and the head
kr.export_merged(classifier, "sentiment.keras", format="keras")
# --8<-- [end:ship]
