"""Importing the package costs next to nothing beside Keras."""

import os
import subprocess
import sys

LIMIT = 0.1  # seconds
SCRIPT = """
import time
import keras
before = time.process_time()
import keras_randlora
print(time.process_time() - before)
"""


def test_import_takes_a_tenth_of_a_second_beyond_keras():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT]
    seconds = [
        float(subprocess.check_output(command, env=environment, text=True))
        for _ in range(3)
    ]
    assert min(seconds) < LIMIT, seconds
