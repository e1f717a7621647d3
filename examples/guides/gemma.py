"""Fine-tune Gemma 3 to answer in one word, and save an adapter of some megabytes.

python examples/guides/gemma.py
"""

# --8<-- [start:load]
import keras
import keras_hub

import keras_randlora as kr

model = keras_hub.models.Gemma3CausalLM.from_preset("gemma3_1b")
model.preprocessor.sequence_length = 64
# --8<-- [end:load]

# --8<-- [start:data]
facts = {
    "Which metal is liquid at room temperature?": "Mercury",
    "Which planet has the shortest year?": "Mercury",
    "Which gas do plants take in?": "Carbon dioxide",
    "Which ocean is the largest?": "Pacific",
    "Which organ pumps the blood?": "Heart",
    "Which language has the most native speakers?": "Mandarin",
    "Which element has the symbol Fe?": "Iron",
    "Which star is nearest to the Earth?": "Sun",
}
data = {
    "prompts": [f"Question: {question}\nAnswer: " for question in facts],
    "responses": list(facts.values()),
}
# --8<-- [end:data]

# --8<-- [start:enable]
report = kr.enable_randlora(model, rank=32, targets=["query", "value"])
print(report)
# --8<-- [end:enable]

# --8<-- [start:fit]
model.compile(
    optimizer=keras.optimizers.AdamW(1e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    sampler="greedy",
)
history = model.fit(data, batch_size=4, epochs=5)
# --8<-- [end:fit]

# --8<-- [start:save]
kr.save_adapter(model, "gemma.safetensors")
# --8<-- [end:save]

# --8<-- [start:ship]
kr.merge_randlora(model)
print(model.generate("Question: Which animal barks?\nAnswer: ", max_length=32))
model.save_to_preset("gemma-merged")
# --8<-- [end:ship]
