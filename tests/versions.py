"""What only some versions of Keras and keras-hub have, for tests that need it."""

import re
from importlib.metadata import version as installed

import keras
import keras_hub
import pytest
from backend import BACKEND


def numbers(version):
    """Return `(3, 16)` for "3.16.0.dev2026102704"."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


KERAS, KERAS_HUB = numbers(keras.__version__), numbers(keras_hub.__version__)
# The first Keras whose `Dense` and `EinsumDense` can be quantized so, if not 3.12.
MODES_SINCE = {
    "int8, weights": (3, 13),
    "int4, channels": (3, 13),
    "int4, blocks": (3, 14),
    "awq": (3, 14),
}

# `Model.quantize` warns of every layer that it passes by; since 3.16 once, of all.
PASSED_BY = pytest.mark.filterwarnings(
    "ignore:Layer .* does not have a `quantize`",
    "ignore:`model.quantize..`. [0-9]+ layer",
)


def since(version, what, backend=BACKEND):
    """Skip a test with a Keras before `version`, the first that has `what`.

    Of a `backend`, if given: others have it in every version.
    """
    first = ".".join(map(str, version))
    return pytest.mark.skipif(
        KERAS < version and BACKEND == backend,
        reason=f"{what} is new in Keras {first}, this is {keras.__version__}",
    )


def since_hub(version, what, backend=BACKEND):
    """Skip a test with a keras-hub before `version`, as `since` does."""
    first = ".".join(map(str, version))
    return pytest.mark.skipif(
        KERAS_HUB < version and BACKEND == backend,
        reason=f"{what} is new in keras-hub {first}, this is {keras_hub.__version__}",
    )


def needs_mode(mode):
    """Skip a test if layers cannot be quantized in a mode."""
    return since(MODES_SINCE.get(mode, (3, 12)), f"The quantization '{mode}'")


NEEDS_MUON = since((3, 13), "`Muon` on TensorFlow", "tensorflow")
NEEDS_SCHEDULE_FREE = since((3, 14), "`ScheduleFreeAdamW`")
NEEDS_ORBAX = since((3, 14), "`OrbaxCheckpoint`")
# Earlier ones give JAX the sampler's variables, which JAX 0.9 does not take.
NEEDS_RANDOM_SAMPLERS = since_hub((0, 26), "A random sampler on JAX 0.9", "jax")
NEEDS_TRACEABLE_LAYERS = since((3, 15), "Tracing layers with torch.export or Dynamo")
# Earlier ones leave the tensors of a call in reference cycles of `tree_flatten`.
NEEDS_TENSORS_FREED = since((3, 15), "Freeing a call's tensors at once", "torch")
NEEDS_MESH_ON_TORCH = since((3, 15), "`ModelParallel` on PyTorch", "torch")
# Setting the random seed clears TensorFlow's kernels, which own tokenizers before that.
NEEDS_LASTING_TOKENIZERS = pytest.mark.skipif(
    numbers(installed("tensorflow-text")) < (2, 21),
    reason="Tokenizers that outlive `set_random_seed` are new in tensorflow-text 2.21, "
    f"this is {installed('tensorflow-text')}",
)
NEEDS_PRESETS_ALONE = since_hub((0, 30), "A preset of a task without a preprocessor")
NEEDS_LLAMA_FOR_TRANSFORMERS = since_hub((0, 32), "`export_to_transformers` of Llama 3")
# Since keras-hub 0.25.1 they are those of Keras.
NEEDS_INT4_EMBEDDINGS = since((3, 13), "The quantization 'int4' of tied embeddings")
