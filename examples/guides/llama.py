"""Fine-tune every linear layer of a Llama on plain text, with the cheapest basis.

python examples/guides/llama.py
"""

# --8<-- [start:load]
import keras
import keras_hub

import keras_randlora as kr

PRESET = "llama3.2_1b"
model = keras_hub.models.Llama3CausalLM.from_preset(PRESET)
# --8<-- [end:load]

# --8<-- [start:data]
texts = [
    "Log: the harbour pilot boarded at six. Wind north, four. All well.",
    "Log: rain since noon. Hatches closed. Wind west, six. All well.",
    "Log: passed the light at nine. Visibility good. All well.",
    "Log: engine stopped for an hour, filter changed. All well.",
]
data = kr.instruction_data(model, texts, batch_size=2)
anchored = "Log: anchored in the lee of the island. Wind south, five. All well."
held_out = kr.instruction_data(model, [anchored])
# --8<-- [end:data]

# --8<-- [start:enable]
rank = kr.rank_like_lora(model, lora_rank=16, targets="all-linear")
report = model.enable_randlora(rank=rank, targets="all-linear", basis="kronecker")
print(report)
# --8<-- [end:enable]

# --8<-- [start:fit]
model.compile(
    optimizer=keras.optimizers.AdamW(5e-4),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    sampler="greedy",
)
model.fit(data, epochs=5)
# --8<-- [end:fit]

# --8<-- [start:compare]
with kr.base_only(model):  # the adapters are off inside the block
    before = model.evaluate(held_out, return_dict=True)["loss"]
after = model.evaluate(held_out, return_dict=True)["loss"]
print(f"Held-out loss {before:.3f} without the adapter, {after:.3f} with it")
# --8<-- [end:compare]

# --8<-- [start:save]
model.save_randlora("llama.safetensors")
# --8<-- [end:save]

# --8<-- [start:load-again]
fresh = keras_hub.models.Llama3CausalLM.from_preset(PRESET)
fresh.load_randlora("llama.safetensors")  # adapts the model and sets the values
fresh.compile(sampler="greedy")
print(fresh.generate("Log:", max_length=32))
# --8<-- [end:load-again]
