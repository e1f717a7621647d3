"""Fine-tune on several devices with PyTorch: one process and one replica for each.

    torchrun --nproc-per-node 2 examples/distributed_torch.py

Each process takes its part of every batch; `DistributedDataParallel` averages the
gradients of the adapters between them.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
import torch
import torch.distributed as dist
from language_model import (
    load,
    loss_and_optimizer,
    option_parser,
    print_loss,
    windows_for,
)
from torch.nn.parallel import DistributedDataParallel

import keras_randlora as kr


def main() -> keras.Model:
    """Train an adapter with the other processes, and return the model."""
    arguments = option_parser(__doc__).parse_args()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

    # --8<-- [start:model]
    model, tokenizer = load(arguments.preset)
    report = kr.enable_randlora(model, arguments.rank)
    train(model, windows_for(arguments, tokenizer), arguments)
    if dist.get_rank() == 0:
        print(report)
        kr.save_adapter(model, arguments.output)
    # --8<-- [end:model]
    dist.destroy_process_group()
    return model


def train(model, windows, arguments) -> None:
    """Train on this process's rows of each batch."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    rows, left = divmod(arguments.batch_size, processes)
    if left:
        raise SystemExit(f"--batch-size must be a multiple of {processes} processes")
    # --8<-- [start:train]
    # Wrapped after enabling: gradients of adapters enabled later would silently not be
    # averaged. Keras's own `fit` bypasses the wrapper.
    replica = DistributedDataParallel(model)
    options = loss_and_optimizer(arguments)
    loss_of, optimizer = options["loss"], options["optimizer"]
    total = 0.0
    for step in range(arguments.steps):
        first = step * arguments.batch_size + rank * rows
        part = slice(first, first + rows)
        inputs = {name: array[part] for name, array in windows.inputs.items()}
        loss = loss_of(windows.targets[part], replica(inputs, training=True))
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            weights = model.trainable_weights
            optimizer.apply([weight.value.grad for weight in weights], weights)
        loss = loss.detach()
        dist.all_reduce(loss)
        total += loss.item() / processes
        if rank == 0:
            print_loss(step + 1, total / (step + 1))
    # --8<-- [end:train]


if __name__ == "__main__":
    main()
