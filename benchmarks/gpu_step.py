"""Step time and peak memory on a GPU: blocks of Llama and Gemma in bfloat16.

Takes the options of `benchmarks.step_time`.
"""

import sys

from benchmarks import machine, results, step_time


def main() -> int:
    """Measure on the GPU, or say that there is none and return 2."""
    if machine.gpu() is None:
        print(
            "The GPU benchmark needs an NVIDIA GPU that `nvidia-smi` lists, and torch "
            "and jax with CUDA; here is none. `make bench` measures on the CPU.",
            file=sys.stderr,
        )
        return 2
    return step_time.main(
        device="gpu",
        models=[
            "llama3-1b-blocks",
            "gemma3-1b-blocks",
            "llama3-8b-blocks",
            "gemma-2b-blocks",
        ],
        tokens=[(4, 512), (8, 1024)],
        backends=["torch", "jax"],
        dtype="bfloat16",
        threads=8,
        steps=20,
        out=results.RAW / "gpu_step.json",
    )


if __name__ == "__main__":
    raise SystemExit(main())
