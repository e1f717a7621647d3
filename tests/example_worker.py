"""Runs a distributed example and records what each device ended up with.

Usage: python example_worker.py MODULE FOLDER OPTIONS, for `test_distribution.py`. The
adapter on replica i goes to FOLDER/replica_i.npz; FOLDER/saved gets a byte for each
adapter file that any process writes.
"""

import importlib
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def replicas(variable):
    """Return a variable's value on each device of this process."""
    value = variable.value
    if hasattr(value, "addressable_shards"):
        return [np.asarray(shard.data) for shard in value.addressable_shards]
    if isinstance(getattr(value, "values", None), tuple):
        return [component.numpy() for component in value.values]
    return [value.detach().cpu().numpy()]


def main(module, folder):
    """Run the example and write the records."""
    example = importlib.import_module(module)
    save = example.kr.save_adapter

    def counted(model, path):
        with open(folder / "saved", "a") as file:
            file.write("1")
        save(model, path)

    example.kr.save_adapter = counted
    model = example.main()

    from keras_randlora.files.weights import adapter_variables

    values = {path: replicas(v) for path, v in adapter_variables(model).items()}
    first = int(os.environ.get("RANK", 0))
    for index in range(len(next(iter(values.values())))):
        arrays = {path: copies[index] for path, copies in values.items()}
        np.savez(folder / f"replica_{first + index}.npz", **arrays)


if __name__ == "__main__":
    name, place, *options = sys.argv[1:]
    sys.argv = [name, *options]
    main(name, Path(place))
