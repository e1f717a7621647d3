#!/usr/bin/env bash
# Guess: generate(prompt, max_length=n) with a prompt of more than n tokens raises an error or warns, as
#   transformers does ("Input length of input_ids is …, but max_length is set to …"), or answers anyway.
# Really: the prompt is cut to n tokens at its end, where the question usually is, nothing is generated,
#   and what comes back is the beginning of the prompt, without a warning; in a batch for the long ones
#   only. The preprocessor's sequence_length, the default of max_length, does the same.
# Seen on 2026-11-30: keras-hub 0.32.0 with keras 3.15.1 and tensorflow-cpu 2.21.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras-hub==0.32.0 keras==3.15.1 tensorflow-cpu==2.21.0 tensorflow-text==2.21.0 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3
"$folder/env/bin/python" - 2>/dev/null <<'PROGRAM'
import warnings

import keras_hub

pieces = [*"abcdefgh", "ab", "<|endoftext|>"]
tokenizer = keras_hub.models.GPT2Tokenizer({p: n for n, p in enumerate(pieces)}, ["a b"])
preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=6)
backbone = keras_hub.models.GPT2Backbone(
    vocabulary_size=len(pieces), num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8, max_sequence_length=16
)
model = keras_hub.models.GPT2CausalLM(backbone, preprocessor)
model.compile(sampler="greedy")
long, short = "cdefghcdef", "cd"
warnings.simplefilter("error", UserWarning)
seen = {}
for how, options in (("max_length=4", dict(max_length=4)), ("sequence_length=6", {})):
    answers = model.generate([long, short], stop_token_ids=None, **options)
    for prompt, answer in zip((long, short), answers):
        cut = prompt.startswith(answer) and len(answer) < len(prompt)
        seen[how, prompt] = len(answer) if cut else "goes on"
        print(f"{how} | prompt {prompt!r} | answer {answer!r}", "| cut" if cut else "")
length = {"max_length=4": 3, "sequence_length=6": 5}  # and the start token
as_described = all(seen[how, long] == n and seen[how, short] == "goes on" for how, n in length.items())
raise SystemExit(0 if as_described else "long prompts are treated otherwise now")
PROGRAM
