"""The files that a released version writes, kept so that every later one reads them.

python tests/released_files.py writes those of this version, and its public names, to
`released/VERSION/` once, when it is released. Run it on one backend: the files are the
same on all.
"""

import json
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
import public_api
from keras import layers, ops

import keras_randlora as kr

# Options of `enable_randlora`, by the name of the adapter file.
ADAPTERS = {
    "uniform": dict(rank=2, targets=["hidden", "heads"], also_train=["head"]),
    "normal": dict(rank=3, targets=["hidden"], basis="normal", seed=7, alpha=5),
    "binary": dict(rank=3, targets=["heads"], basis="binary", train_bias="adapted"),
    "sparse": dict(rank=2, targets="all-linear", basis="sparse", num_bases=2),
    "very_sparse": dict(rank=2, targets=["hidden"], basis="very_sparse"),
    "ternary": dict(rank=2, targets=["hidden"], basis="ternary", sparsity=20),
    "kronecker": dict(rank=2, targets=["hidden"], basis="kronecker"),
    "regenerated": dict(rank=2, targets=["hidden"], basis_storage="regenerated"),
}
PEFT_NAMES = {"hidden": "net.0", "head": "net.2"}


def plain():
    """Return the base model: the same weights in every version, on every backend."""
    inputs = keras.Input((6,), name="features")
    x = layers.Dense(10, activation="tanh", name="hidden")(inputs)
    x = layers.Reshape((2, 5), name="split")(x)
    x = layers.EinsumDense("abc,cde->abde", (2, 2, 2), name="heads")(x)
    outputs = layers.Dense(3, name="head")(layers.Flatten(name="join")(x))
    model = keras.Model(inputs, outputs, name="released")
    fill(model.weights, 1)
    return model


def fill(variables, seed):
    """Set variables to numbers that NumPy's `RandomState` gives for ever."""
    draw = np.random.RandomState(seed)
    for variable in variables:
        variable.assign(draw.uniform(-0.5, 0.5, variable.shape).astype("float32"))


def adapted(options):
    """Return the base model with an adapter whose values matter."""
    model = plain()
    kr.enable_randlora(model, **options)
    draw = np.random.RandomState(2)
    state = {
        path: draw.uniform(-0.2, 0.2, array.shape).astype("float32")
        for path, array in sorted(kr.get_adapter(model).items())
    }
    kr.set_adapter(model, state)
    return model


def outputs(model):
    """Return the outputs for fixed inputs, `(4, 3)`."""
    x = np.random.RandomState(3).uniform(-1, 1, (4, 6)).astype("float32")
    return ops.convert_to_numpy(model(x, training=False))


def trained(model):
    """Fit two steps, and return the model."""
    x = np.random.RandomState(4).uniform(-1, 1, (4, 6)).astype("float32")
    model.compile(keras.optimizers.AdamW(1e-3), "mse", jit_compile=False)
    model.fit(x, np.zeros((4, 3), "float32"), batch_size=2, shuffle=False, verbose=0)
    return model


def write(folder):
    """Write every kind of file, and what the models put out."""
    folder.mkdir(parents=True)
    expected = {}
    for name, options in ADAPTERS.items():
        model = adapted(options)
        kr.save_adapter(model, folder / f"{name}.safetensors")
        expected[name] = outputs(model)
    model = adapted(ADAPTERS["uniform"])
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    linear = adapted(dict(rank=2, targets=["hidden", "head"]))
    kr.peft.save(linear, folder / "peft", name_map=PEFT_NAMES)
    expected["peft"] = outputs(linear)
    kr.disable_randlora(linear)
    kr.peft.load(linear, folder / "peft", name_map=PEFT_NAMES)
    kr.save_adapter(linear, folder / "given.safetensors")
    expected["given"] = outputs(linear)
    fitted = trained(adapted(ADAPTERS["uniform"]))
    kr.save_adapter(fitted, folder / "fitted.safetensors")
    kr.save_optimizer(fitted, folder / "fitted.optimizer.safetensors")
    expected["fitted"] = outputs(fitted)
    expected = {name: array.tolist() for name, array in expected.items()}
    (folder / "outputs.json").write_text(json.dumps(expected, indent=1) + "\n")
    public_api.write(folder)


if __name__ == "__main__":
    write(public_api.RELEASED / kr.__version__)
