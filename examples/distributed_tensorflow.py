"""Fine-tune on several devices with TensorFlow: a replica of the model on each.

python examples/distributed_tensorflow.py                  # every GPU
python examples/distributed_tensorflow.py --cpu-devices 2  # a CPU as two devices
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf
from language_model import fit, load, loss_and_optimizer, option_parser, windows_for

import keras_randlora as kr


def main() -> keras.Model:
    """Train an adapter, save it, and return the model."""
    parser = option_parser(__doc__)
    parser.add_argument("--cpu-devices", type=int, help="train on so many CPU devices")
    arguments = parser.parse_args()

    # --8<-- [start:model]
    strategy = tf.distribute.MirroredStrategy(devices(arguments.cpu_devices))
    with strategy.scope():  # each variable is mirrored on the devices
        model, tokenizer = load(arguments.preset)
        print(kr.enable_randlora(model, arguments.rank))
        model.compile(**loss_and_optimizer(arguments))
    fit(model, windows_for(arguments, tokenizer), arguments.batch_size)
    kr.save_adapter(model, arguments.output)
    # --8<-- [end:model]
    return model


def devices(cpu_devices: int | None) -> list[str] | None:
    """Return the CPU devices to train on, `None` for every GPU."""
    if cpu_devices is None:
        return None
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * cpu_devices
    )
    return [f"CPU:{index}" for index in range(cpu_devices)]


if __name__ == "__main__":
    main()
