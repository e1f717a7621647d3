"""The same layers with Keras's `enable_lora` and with `enable_randlora`.

python examples/guides/from_lora.py
"""

import keras_hub

import keras_randlora as kr

PRESET = "llama3.2_1b"

# --8<-- [start:before]
model = keras_hub.models.Llama3CausalLM.from_preset(PRESET)
model.backbone.enable_lora(rank=4)
# --8<-- [end:before]
with_lora = model

# --8<-- [start:after]
model = keras_hub.models.Llama3CausalLM.from_preset(PRESET)
report = model.enable_randlora(rank=kr.rank_like_lora(model, lora_rank=4))
# --8<-- [end:after]

print(report)
