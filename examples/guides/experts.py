"""Adapt the experts of a mixture, and a bare weight of your own layer.

python examples/guides/experts.py
"""

# --8<-- [start:load]
import keras
import keras_hub

import keras_randlora as kr

model = keras_hub.models.MixtralCausalLM.from_preset("mixtral_8_7b_en")
# --8<-- [end:load]

# --8<-- [start:enable]
report = kr.enable_randlora(model, rank=32, targets="all-linear", basis="kronecker")
print(report)
# --8<-- [end:enable]

# --8<-- [start:fit]
model.compile(
    optimizer=keras.optimizers.AdamW(1e-4),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
texts = ["the full rank of an update", "random bases and trainable diagonals"]
data = kr.instruction_data(model, texts, batch_size=2)
history = model.fit(data, epochs=3)
kr.save_adapter(model, "experts.safetensors")
# --8<-- [end:fit]

# --8<-- [start:shared]
kr.disable_randlora(model)
shared = kr.enable_randlora(
    model, rank=32, targets="experts", basis="kronecker", shared_in_batch="gamma"
)
print(shared)
# --8<-- [end:shared]


# --8<-- [start:own]
class Heads(keras.layers.Layer):
    """Four heads with one matrix each."""

    def build(self, input_shape):
        self.bank = self.add_weight(name="bank", shape=(4, input_shape[-1], 8))

    def call(self, inputs):
        return keras.ops.einsum("bti,hio->btho", inputs, self.bank)


own = keras.Sequential([keras.Input((5, 16)), Heads(name="heads")])
kr.enable_randlora(
    own, rank=4, targets="heads/bank", weight_axes={"heads/bank": "batch in out"}
)
# --8<-- [end:own]
