"""Makes `python -m keras_randlora` the command `keras-randlora`."""

import sys

from keras_randlora.cli import main

sys.exit(main())
