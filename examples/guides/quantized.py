"""Fine-tune a model with frozen int4 kernels.

python examples/guides/quantized.py
"""

# --8<-- [start:load]
import keras
import keras_hub

import keras_randlora as kr

PRESET = "llama3.2_1b"
model = keras_hub.models.Llama3CausalLM.from_preset(PRESET, dtype="bfloat16")
# --8<-- [end:load]

# --8<-- [start:quantize]
model.backbone.quantize(
    "int4",
    config=keras.quantizers.Int4QuantizationConfig(block_size=32),
    filters=lambda layer: not isinstance(layer, keras.layers.Embedding),
)
# --8<-- [end:quantize]

# --8<-- [start:enable]
report = kr.enable_randlora(model, rank=32, targets="all-linear", basis="kronecker")
kr.rematerialize(model.backbone)
print(report)
# --8<-- [end:enable]

# --8<-- [start:fit]
texts = [
    "Log: the harbour pilot boarded at six. Wind north, four. All well.",
    "Log: rain since noon. Hatches closed. Wind west, six. All well.",
    "Log: passed the light at nine. Visibility good. All well.",
    "Log: engine stopped for an hour, filter changed. All well.",
]
model.compile(
    optimizer=keras.optimizers.AdamW(5e-4),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
data = kr.instruction_data(model, texts, batch_size=1)
history = model.fit(data, epochs=5)
kr.save_adapter(model, "four-bits.safetensors")
# --8<-- [end:fit]

# --8<-- [start:merge]
whole = keras_hub.models.Llama3CausalLM.from_preset(PRESET)  # in floating point
kr.load_adapter(whole, "four-bits.safetensors")
kr.merge_randlora(whole)
# --8<-- [end:merge]
