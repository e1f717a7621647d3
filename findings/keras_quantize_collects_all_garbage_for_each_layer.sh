#!/usr/bin/env bash
# Guess: model.quantize("int8") replaces arrays, and leaves the garbage collector alone or runs it once.
# Really: Layer.__delattr__ runs a full gc.collect() for each variable that is deleted, and quantize deletes
#   each kernel: one collection of everything in the process a layer, whatever the layer's size. In a process
#   with half a million objects (keras-hub imported) these take most of the time: gc.freeze() before and
#   gc.unfreeze() after make the same call several times faster. `del layer.variable` costs the same.
# Seen on 2026-11-30: keras 3.15.1 with jax 0.10.2
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras==3.15.1 jax==0.10.2 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=jax JAX_PLATFORMS=cpu
"$folder/env/bin/python" - 2>/dev/null <<'PROGRAM'
import gc
import time

import keras

LAYERS = 40


def quantized_model():
    """Return the seconds that `quantize` takes, and how many full collections."""
    layers = [keras.layers.Dense(4, name=f"dense_{i}") for i in range(LAYERS)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    full = []
    watch = lambda phase, facts: full.append(1) if (phase, facts["generation"]) == ("start", 2) else None
    gc.callbacks.append(watch)
    begin = time.perf_counter()
    model.quantize("int8")
    seconds = time.perf_counter() - begin
    gc.callbacks.remove(watch)
    return seconds, len(full)


objects = [[] for _ in range(500_000)]
quantized_model()  # compiles
plain, count = quantized_model()
gc.freeze()
frozen, _ = quantized_model()
gc.unfreeze()
print(f"{LAYERS} layers: {count} full collections, {'at least' if count >= LAYERS else 'fewer than'} one a layer")
print("frozen objects make it", "three times as fast and more" if plain > 3 * frozen else "no faster")
raise SystemExit(0 if count >= LAYERS and plain > 3 * frozen else "quantize spares the collector now")
PROGRAM
