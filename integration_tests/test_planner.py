"""The planner against training steps of SmolLM2-135M and Gemma 3 270M.

Planned from the folder's `config.json`, measured on the loaded model.
"""

import keras
import keras_hub
import numpy as np
import pretrained
import pytest
from peaks import next_token_batch, step_peak

import keras_randlora as kr

# keras-hub leaves the file of a SentencePiece tokenizer open.
pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() == "tensorflow", reason="TensorFlow does not tell"
    ),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STEPS = {"short": dict(batch=8, sequence=64), "long": dict(batch=1, sequence=768)}
VOCABULARY = 40_000


@pytest.mark.parametrize("targets", ["all-linear", None])
@pytest.mark.parametrize("name", ["smollm2", "gemma3_270m"])
def test_a_step_takes_what_was_planned(name, targets):
    folder = str(getattr(pretrained, name)())
    model = keras_hub.models.CausalLM.from_preset(folder, preprocessor=None)
    weights = sum(np.prod(w.shape) * 4 for w in model.weights)
    plans = {
        step: kr.plan(folder, 32, targets=targets, **shape)
        for step, shape in STEPS.items()
    }
    kr.enable_randlora(model, 32, targets)
    for step, shape in STEPS.items():
        planned = plans[step]
        assert planned.weights == weights
        batch = next_token_batch(shape["batch"], shape["sequence"], VOCABULARY)
        measured = step_peak(model, *batch)
        predicted = planned.activations + planned.logits + planned.temporaries
        print(f"{name} {targets} {step}: {predicted / 1e9:.3f} of {measured / 1e9:.3f}")
        assert predicted == pytest.approx(measured, rel=0.15)
