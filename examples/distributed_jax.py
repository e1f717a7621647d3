"""Fine-tune on several devices with JAX: data parallelism, and model parallelism.

    python examples/distributed_jax.py
    python examples/distributed_jax.py --preset llama3.2_1b --model-parallel 4

Without accelerators, XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight
devices of a CPU. Over several hosts start the same command on each, with
--several-hosts and the variables of docs/guides/several-hosts.md.
"""

import argparse
import os
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import keras_hub
import numpy as np
from language_model import fit, load, loss_and_optimizer, option_parser, windows_for
from text_data import Windows

import keras_randlora as kr


def main() -> keras.Model:
    """Train an adapter, save it, and return the model."""
    parser = option_parser(__doc__)
    parser.add_argument(
        "--model-parallel", type=int, default=1, help="devices that share a kernel"
    )
    parser.add_argument(
        "--layout", default="LlamaBackbone", help="class whose layout map is used"
    )
    parser.add_argument(
        "--several-hosts",
        action="store_true",
        help="join the other processes, as the cluster or KERAS_DISTRIBUTION_* says",
    )
    parser.add_argument(
        "--checkpoints", type=Path, help="Orbax folder to write to, and to resume from"
    )
    arguments = parser.parse_args()

    # --8<-- [start:hosts]
    # Before anything else touches JAX: it then knows the devices of all hosts.
    if arguments.several_hosts:
        keras.distribution.initialize()
    # --8<-- [end:hosts]
    # --8<-- [start:model]
    # Before any variable is created, since each gets its layout when it is created.
    keras.distribution.set_distribution(
        distribution(arguments.model_parallel, arguments.layout)
    )
    model, tokenizer = load(arguments.preset)
    report = kr.enable_randlora(model, arguments.rank)
    model.compile(**loss_and_optimizer(arguments))
    windows = windows_for(arguments, tokenizer)
    callbacks = checkpoints(model, arguments.checkpoints)
    fit(model, *own_part(windows, arguments), callbacks)
    # Every process calls: what is divided is gathered, and one of them writes.
    kr.save_adapter(model, arguments.output)
    # --8<-- [end:model]
    if jax.process_index() == 0:
        print(report)
    return model


# --8<-- [start:part]
def own_part(windows: Windows, arguments: argparse.Namespace) -> tuple[Windows, int]:
    """Return this process's windows of each batch, and how many they are.

    Processes whose devices share the kernels of one replica pass the same windows.
    """
    replicas = jax.device_count() // arguments.model_parallel
    parts = min(replicas, jax.process_count())
    rows, left = divmod(arguments.batch_size, parts)
    if left or jax.process_count() % parts:
        raise SystemExit(f"--batch-size must be a multiple of {parts} parts")
    part = jax.process_index() * parts // jax.process_count()
    own = slice(part * rows, (part + 1) * rows)

    def cut(array: np.ndarray) -> np.ndarray:
        batches = array.reshape(-1, arguments.batch_size, *array.shape[1:])
        return batches[:, own].reshape(-1, *array.shape[1:])

    return Windows(*map(cut, windows)), rows


# --8<-- [end:part]


# --8<-- [start:orbax]
def checkpoints(model: keras.Model, folder: Path | None) -> list[Any]:
    """Resume from an Orbax folder if it is there, and return what writes it."""
    if folder is None:
        return []
    folder = folder.resolve()  # Orbax wants an absolute path
    if folder.exists():
        model.load_weights(folder)  # λ, γ, the base, the optimizer, random generators
    return [keras.callbacks.OrbaxCheckpoint(folder)]


# --8<-- [end:orbax]


# --8<-- [start:distribution]
def distribution(model_parallel: int, layout: str) -> Any:
    """Return the sharding of batches and, over `model_parallel` devices, of kernels."""
    if model_parallel == 1:
        return keras.distribution.DataParallel(auto_shard_dataset=False)
    mesh = keras.distribution.DeviceMesh(
        (jax.device_count() // model_parallel, model_parallel), ("batch", "model")
    )
    base_map = getattr(keras_hub.models, layout).get_layout_map(mesh)
    return keras.distribution.ModelParallel(
        layout_map=kr.layout_map(base_map),
        batch_dim_name="batch",
        auto_shard_dataset=False,  # `own_part` gives each process its rows
    )


# --8<-- [end:distribution]


if __name__ == "__main__":
    main()
