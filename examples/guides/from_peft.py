"""Load an adapter that PEFT's RandLora trained, and save one for PEFT.

python examples/guides/from_peft.py
"""

# --8<-- [start:load]
import keras_hub

import keras_randlora as kr

PRESET = "llama3.2_1b"
model = keras_hub.models.Llama3CausalLM.from_preset(PRESET)
report = kr.peft.load(model, "peft-adapter")
print(report)
# --8<-- [end:load]

# --8<-- [start:keep]
kr.save_adapter(model, "from-peft.safetensors")
# --8<-- [end:keep]

# --8<-- [start:back]
kr.peft.save(
    model,
    "for-peft",
    base_model="meta-llama/Llama-3.2-1B",
    task_type="CAUSAL_LM",
)
# --8<-- [end:back]

# --8<-- [start:own]
own = keras_hub.models.Llama3CausalLM.from_preset(PRESET)
own.enable_randlora(rank=32, targets="attention")  # the bases follow from a seed
kr.peft.save(own, "own-for-peft", base_model="meta-llama/Llama-3.2-1B")
# --8<-- [end:own]
