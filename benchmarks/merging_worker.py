"""Worker process of `benchmarks.merging`: one merge of a sharded model."""

from typing import Any

from benchmarks.memory import HostMemory
from benchmarks.processes import serve


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rise of memory while a model is merged."""
    import keras
    import numpy as np

    import keras_randlora as kr

    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ("data", "model"), devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*kernel"] = (None, "model")
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layouts)
    )
    width = settings["width"]
    dense = [keras.layers.Dense(width, use_bias=False, name="warm_up")]
    dense += [
        keras.layers.Dense(width, use_bias=False) for _ in range(settings["layers"])
    ]
    model = keras.Sequential([keras.Input((width,)), *dense])
    memory = HostMemory()
    rises = []
    # The first merge compiles what the second one uses.
    for targets in ("warm_up", [layer.name for layer in dense[1:]]):
        kr.enable_randlora(
            model, rank=settings["rank"], targets=targets, basis=settings["basis"]
        )
        for variable in model.trainable_variables:
            variable.assign(np.full(variable.shape, 1e-3, "float32"))
        before = memory.settle()
        kr.merge_randlora(model)
        rises.append((memory.peak() - before) / (4 * width**2))
    return [{"measure": "rise of the peak, in kernels", "value": rises[1], "digits": 2}]


if __name__ == "__main__":
    serve(measure)
