#!/usr/bin/env bash
# Guess: jax.device_put of the same NumPy array in every process lays it out over all of them,
#   whatever numbers it holds.
# Really: where the array holds NaN it raises AssertionError: "passed to device_put is not the
#   same on each process". The check compares with ==, and NaN is not equal to itself. So a Keras
#   variable that starts at NaN cannot be made under a distribution over several hosts, nor can a
#   weight with NaN be loaded there. Infinity passes.
# Seen on 2026-11-30: jax 0.10.2, two processes on a CPU with gloo
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile jax==0.10.2 numpy==2.4.6
cd "$folder"
export JAX_PLATFORMS=cpu JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo GLOG_minloglevel=3
cat > program.py <<'PROGRAM'
import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
everywhere = NamedSharding(Mesh(jax.devices(), ("all",)), PartitionSpec())


def laid_out(value):
    """Whether an array of this value can be laid out over both processes."""
    try:
        jax.device_put(np.full(4, value, "float32"), everywhere)
    except AssertionError as error:
        return str(error).partition(" Make sure")[0]
    return "laid out"


seen = {value: laid_out(value) for value in (0.0, np.inf, np.nan)}
if sys.argv[2] == "0":
    for value, what in seen.items():
        print(f"{value}: {what}")
plain, infinite, nan = seen.values()
if not (plain == infinite == "laid out" and "is not the same on each process" in nan):
    raise SystemExit("CHANGED: the behaviour is another one now")
if sys.argv[2] == "0":
    print("as described")
PROGRAM
port=$("$folder/env/bin/python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
timeout -s KILL 120 "$folder/env/bin/python" program.py "$port" 1 > "$folder/other" 2>&1 &
other=$!
timeout -s KILL 120 "$folder/env/bin/python" program.py "$port" 0 | grep -v Gloo
wait "$other"
