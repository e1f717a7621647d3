"""Fine-tune Gemma 3 to answer in one word, and save an adapter of some megabytes.

python examples/guides/gemma.py
"""

# --8<-- [start:load]
import keras
import keras_hub

import keras_randlora as kr

model = keras_hub.models.Gemma3CausalLM.from_preset("gemma3_1b")
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
records = [
    {"prompt": f"Question: {question}\nAnswer: ", "completion": answer}
    for question, answer in facts.items()
]
data = kr.instruction_data(model, records, batch_size=4)
# --8<-- [end:data]

# --8<-- [start:enable]
report = kr.enable_randlora(
    model, rank=32, targets=["query", "value"], basis="kronecker"
)
print(report)
# --8<-- [end:enable]

# --8<-- [start:fit]
model.compile(
    optimizer=keras.optimizers.AdamW(1e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    sampler="greedy",
)
history = model.fit(data, epochs=5)
# --8<-- [end:fit]

# --8<-- [start:save]
kr.save_adapter(model, "gemma.safetensors")
# --8<-- [end:save]

# --8<-- [start:ship]
kr.merge_randlora(model)
question = {"prompt": "Question: Which animal barks?\nAnswer: "}
print(model.generate(kr.instruction_prompt(model, question), max_length=32))
model.save_to_preset("gemma-merged")
# --8<-- [end:ship]
