#!/usr/bin/env bash
# Guess: JAX's persistent compilation cache is keyed by program, flags and versions, so that a copy of
#   its folder (on another disk, in an image, in a CI cache with another path) serves as well.
# Really: the folder's path is a part of each key, by way of a flag for caches of XLA on GPUs, also
#   where there is no GPU. A copied or moved folder gives no hit, without a word, and grows to twice its
#   size. With jax_persistent_cache_enable_xla_caches="none" a copy serves.
# Seen on 2026-11-30: jax 0.10.2 with jaxlib 0.10.2, on a CPU
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$folder"
export JAX_PLATFORMS=cpu
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
cat >program.py <<'PROGRAM'
import jax

events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((4, 4))).block_until_ready()
print(*(events.count(f"/jax/compilation_cache/cache_{e}") for e in ("hits", "misses")))
PROGRAM
for caches in default none; do
  if [ "$caches" = none ]; then export JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES=none; fi
  for run in first same copy; do
    if [ "$run" = copy ]; then cp -r "$caches-here" "$caches-copy"; place=$caches-copy; else place=$caches-here; fi
    found=$(JAX_COMPILATION_CACHE_DIR=$folder/$place "$folder/env/bin/python" program.py)
    echo "$caches, $run folder: hits, misses = $found"
    echo "$caches $run $found" >>seen
  done
done
"$folder/env/bin/python" - <<'PROGRAM'
seen = {tuple(words[:2]): tuple(map(int, words[2:])) for words in map(str.split, open("seen"))}
programs = seen["default", "first"][1]
all_found, none_found = (programs, 0), (0, programs)
described = {
    ("default", "first"): none_found,
    ("default", "same"): all_found,
    ("default", "copy"): none_found,
    ("none", "first"): none_found,
    ("none", "same"): all_found,
    ("none", "copy"): all_found,
}
raise SystemExit(0 if programs and seen == described else "a copied cache serves otherwise now")
PROGRAM
