"""Choose rank, targets and basis; count parameters and memory before training.

python examples/guides/choosing.py
"""

# --8<-- [start:load]
import keras_hub

import keras_randlora as kr

model = keras_hub.models.Llama3CausalLM.from_preset("llama3.2_1b")
# --8<-- [end:load]

# --8<-- [start:rank]
as_lora = kr.rank_like_lora(model, lora_rank=16, targets="all-linear")
for_budget = kr.rank_for_budget(model, 2_000_000, targets="all-linear")
print(f"As many parameters as LoRA of rank 16: rank={as_lora}")
print(f"About two million parameters: rank={for_budget}")
# --8<-- [end:rank]

# --8<-- [start:counts]
counts = {}
for rank in (8, 32, 128):
    report = kr.enable_randlora(model, rank=rank, targets="all-linear")
    counts[rank] = report.trainable
    kr.disable_randlora(model)
    print(f"rank={rank}: {counts[rank]:,} parameters, {report.share:.2%} of the model")
# --8<-- [end:counts]

# --8<-- [start:plan]
planned = kr.plan(model, rank=as_lora, targets="all-linear", batch=2, sequence=256)
print(planned)
print(planned.fits(16))
# --8<-- [end:plan]

# --8<-- [start:targets]
report = kr.enable_randlora(
    model,
    rank=as_lora,
    targets=["attention", "*feedforward_gate*"],
    exclude=["attention_output"],
    layers=[0],
)
for layer in report.layers:
    print(layer.path, layer.kernel_shape, layer.num_bases)
# --8<-- [end:targets]
