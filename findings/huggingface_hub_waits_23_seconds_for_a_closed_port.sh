#!/usr/bin/env bash
# Guess: where nothing answers at the endpoint, hf_hub_download of a file that is not in the
#   cache ends at once with LocalEntryNotFoundError, as one of the cache is returned at once.
# Really: a refused connection counts among the errors that pass. The first request is made
#   again five times, after 1, 2, 4, 8 and 8 seconds: 23 seconds until the error. With
#   HF_HUB_OFFLINE=1, or with local_files_only=True, it comes at once.
# Seen on 2026-12-01: huggingface_hub 2.4.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile huggingface_hub==2.4.0
cd "$folder"
export HF_HOME=$folder/cache HF_HUB_DISABLE_TELEMETRY=1
"$folder/env/bin/python" - <<'PROGRAM'
import logging
import os
import socket
import time

with socket.socket() as one:
    one.bind(("localhost", 0))
    port = one.getsockname()[1]
os.environ["HF_ENDPOINT"] = f"http://localhost:{port}"  # closed by now

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import logging as hub_logging


class Attempts(logging.Handler):
    count = 0

    def emit(self, record):
        Attempts.count += "Retrying in" in record.getMessage()


hub_logging.get_logger().addHandler(Attempts())


def seconds(**options):
    start = time.monotonic()
    try:
        hf_hub_download("user/name", "adapter.safetensors", **options)
    except LocalEntryNotFoundError:
        return round(time.monotonic() - start, 1)


asked, here = seconds(), seconds(local_files_only=True)
print(f"{asked} s and {Attempts.count} more attempts; local_files_only: {here} s")
if not (22 < asked < 30 and Attempts.count == 5 and here < 1):
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
