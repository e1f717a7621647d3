"""Interrupt a fine-tuning run and resume it exactly.

python examples/guides/resuming.py
"""

# --8<-- [start:model]
import keras
import numpy as np

import keras_randlora as kr

rng = np.random.default_rng(0)
x = rng.standard_normal((64, 16)).astype("float32")
y = (x @ rng.standard_normal((16, 3))).argmax(axis=-1)


def base():
    """Return the base model; yours comes from a preset."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16,))
    hidden = keras.layers.Dense(32, activation="tanh", name="hidden")(inputs)
    outputs = keras.layers.Dense(3, name="head")(hidden)
    return keras.Model(inputs, outputs)


def compiled(model):
    """Compile the same way each time."""
    model.compile(
        optimizer=keras.optimizers.AdamW(3e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


# --8<-- [end:model]


# --8<-- [start:first]
model = base()
model.enable_randlora(rank=4, targets="all-linear")
last = kr.RandLoRACheckpoint("last.safetensors", with_optimizer=True)
compiled(model).fit(x, y, epochs=3, shuffle=False, verbose=2, callbacks=[last])
# --8<-- [end:first]

# --8<-- [start:second]
model = base()
model.load_randlora("last.safetensors")  # adapts the model and sets the values
kr.load_optimizer(compiled(model), "last.optimizer.safetensors")
last = kr.RandLoRACheckpoint("last.safetensors", with_optimizer=True)
done = last.newest().moment.epoch  # 3
model.fit(
    x, y, initial_epoch=done, epochs=6, shuffle=False, verbose=2, callbacks=[last]
)
# --8<-- [end:second]
resumed = kr.get_adapter(model)

# --8<-- [start:checkpoint]
model = base()
model.enable_randlora(rank=4, targets="all-linear")
best = kr.RandLoRACheckpoint(
    "best.safetensors", monitor="val_loss", save_best_only=True
)
history = compiled(model).fit(
    x, y, epochs=6, shuffle=False, verbose=2, validation_split=0.25, callbacks=[best]
)
model.load_randlora("best.safetensors")  # the values of the best epoch
# --8<-- [end:checkpoint]

# --8<-- [start:kept]
model = base()
model.enable_randlora(rank=4, targets="all-linear")
kept = kr.RandLoRACheckpoint(
    "kept/{epoch:02d}.safetensors", with_optimizer=True, keep_last=1, keep_best=2
)
compiled(model).fit(
    x, y, epochs=6, shuffle=False, verbose=2, validation_split=0.25, callbacks=[kept]
)
newest = kept.newest()
print(newest.path, newest.moment)
# --8<-- [end:kept]

# --8<-- [start:backup]
model = base()
model.enable_randlora(rank=4, targets="all-linear")
backup = keras.callbacks.BackupAndRestore("backup")
compiled(model).fit(x, y, epochs=6, shuffle=False, verbose=2, callbacks=[backup])
# --8<-- [end:backup]
uninterrupted = kr.get_adapter(model)
