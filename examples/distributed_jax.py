"""Fine-tune on several devices with JAX: data parallelism, and model parallelism.

    python examples/distributed_jax.py
    python examples/distributed_jax.py --preset llama3.2_1b --model-parallel 4

Without accelerators, XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight
devices of a CPU.
"""

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import keras_hub
from language_model import fit, load, loss_and_optimizer, option_parser, windows_for

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
    arguments = parser.parse_args()

    # --8<-- [start:model]
    # Before any variable is created, since each gets its layout when it is created.
    keras.distribution.set_distribution(
        distribution(arguments.model_parallel, arguments.layout)
    )
    model, tokenizer = load(arguments.preset)
    print(kr.enable_randlora(model, arguments.rank))
    model.compile(**loss_and_optimizer(arguments))
    fit(model, windows_for(arguments, tokenizer), arguments.batch_size)
    if jax.process_index() == 0:
        kr.save_adapter(model, arguments.output)
    # --8<-- [end:model]
    return model


# --8<-- [start:distribution]
def distribution(model_parallel: int, layout: str) -> Any:
    """Return the sharding of batches and, over `model_parallel` devices, of kernels."""
    if model_parallel == 1:
        return keras.distribution.DataParallel()
    mesh = keras.distribution.DeviceMesh(
        (jax.device_count() // model_parallel, model_parallel), ("batch", "model")
    )
    base_map = getattr(keras_hub.models, layout).get_layout_map(mesh)
    return keras.distribution.ModelParallel(
        layout_map=kr.layout_map(base_map), batch_dim_name="batch"
    )


# --8<-- [end:distribution]


if __name__ == "__main__":
    main()
