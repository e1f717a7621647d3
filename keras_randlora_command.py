"""The command `keras-randlora`, without TensorFlow's start-up lines.

A module beside the package: importing the package imports Keras, which may import
TensorFlow, and its lines come before any setting of its log is read.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_START_UP = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IWE]\d{4} \d\d:\d\d:\d+\.\d+ +\d+ \w+\.cc:\d+\]"
    rb"|\d{4}-\d\d-\d\d [\d:.]+: [IWE] (tensorflow|external)/"
    rb"|To enable the following instructions: "
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep TensorFlow's start-up lines from stderr inside a block.

    Other lines are written when the block ends, also if it fails.
    """
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            held.seek(0)
            for line in held:
                if not _START_UP.match(line):
                    os.write(2, line)


def start_tensorflow() -> None:
    """Import TensorFlow without its start-up lines; nothing if it is not installed."""
    with quiet(), contextlib.suppress(ImportError):
        import tensorflow

        tensorflow.config.list_physical_devices()  # looks for GPUs, with a line


def main() -> int:
    """Run the command; see `keras_randlora.cli`."""
    with quiet():
        from keras_randlora import cli
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
