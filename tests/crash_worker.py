"""Writes an adapter file over and over; for `test_crash.py`, which kills it.

Usage: python crash_worker.py FILE OTHER TARGET KILLS. Children of this process write
the contents of FILE and OTHER to TARGET in turn, and are killed by SIGKILL at random
moments. After each kill TARGET must hold one of the two, whole.
"""

import os
import random
import signal
import sys
import time

import numpy as np

from keras_randlora.files.adapter_file import read_adapter, write_adapter


def write_for_ever(contents, target):
    """Write the contents in turn until killed."""
    while True:
        for content in contents:
            write_adapter(content, target)


def same(one, other):
    """Return whether two contents are equal."""
    return all(
        np.array_equal(one.tensors[key], other.tensors[key]) for key in one.tensors
    )


def main(first, second, target, kills):
    """Kill `kills` writers; return how many left each of the contents."""
    contents = [read_adapter(first), read_adapter(second)]
    write_adapter(contents[0], target)
    left = [0, 0]
    random.seed(0)
    for _ in range(kills):
        writer = os.fork()
        if writer == 0:
            write_for_ever(contents, target)
        time.sleep(random.uniform(0.001, 0.05))
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
        found = read_adapter(target)
        left[[same(found, content) for content in contents].index(True)] += 1
    return left


if __name__ == "__main__":
    print(*main(*sys.argv[1:4], int(sys.argv[4])))
