#!/usr/bin/env bash
# Guess: an entry of JAX's persistent compilation cache that a killed process has left incomplete is
#   noticed, compiled once more and written anew.
# Really: it is noticed in every later run, which warns and compiles; the bad entry is never replaced,
#   since an entry that exists is not written. Entries are written in place, so that a kill can leave
#   one. Only deleting the file by hand brings the cache back.
# Seen on 2026-11-30: jax 0.10.2 with jaxlib 0.10.2, on a CPU
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$folder"
export JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR=$folder/cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
cat >program.py <<'PROGRAM'
import warnings

import jax

events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((4, 4))).block_until_ready()
warned = sum("Error reading persistent" in str(w.message) for w in caught)
hits, misses = (events.count(f"/jax/compilation_cache/cache_{e}") for e in ("hits", "misses"))
print("programs found", hits, "compiled", misses, "warnings", warned)
PROGRAM
for run in "first run" "second run" "an entry was cut off" "the next run" "the entry was deleted" "after that"; do
  entry=$(ls cache/jit__lambda*-cache 2>/dev/null || true)
  case $run in
    "an entry was cut off") head -c 100 "$entry" >half && cp half "$entry" ;;
    "the entry was deleted") rm "$entry" ;;
  esac
  echo "$run: $("$folder/env/bin/python" program.py)"
done | tee seen
"$folder/env/bin/python" - <<'PROGRAM'
lines = dict(line.strip().split(": ") for line in open("seen"))
counts = {run: [int(n) for n in line.split() if n.isdigit()] for run, line in lines.items()}
programs = counts["first run"][1]
described = {
    "first run": [0, programs, 0],
    "second run": [programs, 0, 0],
    "an entry was cut off": [programs - 1, 1, 1],
    "the next run": [programs - 1, 1, 1],
    "the entry was deleted": [programs - 1, 1, 0],
    "after that": [programs, 0, 0],
}
raise SystemExit(0 if counts == described else "JAX treats incomplete entries otherwise now")
PROGRAM
