#!/usr/bin/env bash
# Guess: a causal language model's preprocessor cuts a training text that is longer than sequence_length,
#   and the end token is cut off with its end, as transformers' tokenizers and packers do.
# Really: the end token is put in the place of the last token that fits, and counts in the loss: each cut
#   text teaches the model to stop in the middle of a sentence. The sample weights do not leave it out.
#   add_end_token=False avoids it, and then whole texts have no end token either.
# Seen on 2026-11-30: keras-hub 0.32.0 with keras 3.15.1 and tensorflow-cpu 2.21.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras-hub==0.32.0 keras==3.15.1 tensorflow-cpu==2.21.0 tensorflow-text==2.21.0 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3
"$folder/env/bin/python" - 2>/dev/null <<'PROGRAM'
import keras_hub
import numpy as np

letters = {letter: number for number, letter in enumerate("abcdefgh")}
tokenizer = keras_hub.models.GPT2Tokenizer({**letters, "<|endoftext|>": 8}, [])
names = {number: name for name, number in tokenizer.vocabulary.items()}
seen = {}
for text in ("abcd", "abcdefgh"):
    for add_end_token in (True, False):
        prepare = keras_hub.models.GPT2CausalLMPreprocessor(
            tokenizer, sequence_length=6, add_end_token=add_end_token
        )
        inputs, labels, weights = prepare([text])
        learned = [names[i] for i, w in zip(np.array(labels)[0], np.array(weights)[0]) if w]
        seen[text, add_end_token] = learned
        print(text, "| add_end_token:", add_end_token, "| labels that count:", *learned)
end = "<|endoftext|>"
described = {
    ("abcd", True): [*"abcd", end],
    ("abcd", False): [*"abcd"],
    ("abcdefgh", True): [*"abcde", end],
    ("abcdefgh", False): [*"abcdef"],
}
raise SystemExit(0 if seen == described else "keras-hub cuts texts otherwise now")
PROGRAM
