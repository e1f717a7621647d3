#!/usr/bin/env bash
# Guess: safetensors is a deterministic format: the same tensors and metadata give the same
#   bytes, so that a hash tells whether an adapter has changed.
# Really: metadata goes through a hash map with random order: with a few entries each save, also
#   within one process, writes its header in another order. Equal adapters get different hashes;
#   with one entry or none the bytes are equal.
# Seen on 2026-11-29: safetensors 0.8.0, numpy 2.4.6
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile safetensors==0.8.0 numpy==2.4.6
cd "$folder"
"$folder/env/bin/python" - <<'PROGRAM'
import hashlib
import json

import numpy as np
from safetensors.numpy import save

tensors = {"lambda": np.zeros((2, 3), "float32"), "gamma": np.ones(3, "float32")}


def saves(entries):
    metadata = {f"option_{i}": str(i) for i in range(entries)} or None
    return [save(tensors, metadata=metadata) for _ in range(20)]


def different(files):
    return len({hashlib.sha256(file).hexdigest() for file in files})


counts = {entries: different(saves(entries)) for entries in (0, 1, 8)}
for entries, count in counts.items():
    print(f"{entries} metadata entries: {count} different files of 20 equal saves")
for file in saves(8)[:2]:
    size = int.from_bytes(file[:8], "little")
    print("order:", list(json.loads(file[8 : 8 + size])["__metadata__"]))
as_described = counts[0] == counts[1] == 1 and counts[8] > 10


if not as_described:
    raise SystemExit("CHANGED: the behaviour is another one now")
print("as described")
PROGRAM
