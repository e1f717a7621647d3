#!/usr/bin/env bash
# Guess: a Llama 3 task whose tokenizer was made with other special tokens (bos_token, eos_token and
#   misc_special_tokens are arguments of Llama3Tokenizer; SmolLM2 and other models of its architecture
#   need them) comes back from save_to_preset as it was.
# Really: the tokenizer's configuration holds none of the three. The folder is written without a word and
#   cannot be loaded: the new tokenizer looks for Llama's own tokens. A .keras file fails likewise.
# Seen on 2026-11-30: keras-hub 0.32.0 with keras 3.15.1 and tensorflow-cpu 2.21.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install -qq --no-compile keras-hub==0.32.0 keras==3.15.1 tensorflow-cpu==2.21.0 tensorflow-text==2.21.0 numpy==2.4.6
cd "$folder"
export KERAS_HOME=$folder KERAS_BACKEND=tensorflow TF_CPP_MIN_LOG_LEVEL=3
"$folder/env/bin/python" - 2>/dev/null <<'PROGRAM'
import keras
import keras_hub

SIZES = dict(num_layers=1, num_query_heads=2, num_key_value_heads=1, hidden_dim=8, intermediate_dim=8)
OWN = dict(bos_token="<s>", eos_token="</s>", misc_special_tokens=set())
LLAMAS = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")


def task(tokens, **arguments):
    pieces = [*"abcdefgh", "ab", *tokens]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = keras_hub.models.Llama3Tokenizer(vocabulary, ["a b"], **arguments)
    backbone = keras_hub.models.Llama3Backbone(vocabulary_size=len(pieces), **SIZES)
    preprocessor = keras_hub.models.Llama3CausalLMPreprocessor(tokenizer, sequence_length=6)
    return keras_hub.models.Llama3CausalLM(backbone, preprocessor)


def through_a_preset(model):
    model.save_to_preset("preset")
    return keras_hub.models.CausalLM.from_preset("preset")


def through_a_file(model):
    model.save("model.keras")
    return keras.models.load_model("model.keras")


seen = {}
for way in (through_a_preset, through_a_file):
    for name, model in (("Llama's", task(LLAMAS)), ("others", task(("<s>", "</s>"), **OWN))):
        try:
            result = "end token " + way(model).preprocessor.tokenizer.end_token
        except ValueError as error:
            result = "ValueError: " + str(error).split("\n")[0][:90]
        print(f"special tokens: {name} | {way.__name__}: {result}")
        seen[way.__name__, name] = result.split(":")[0]
described = "ValueError"
fails = {way: seen[way, "others"] for way in ("through_a_preset", "through_a_file")}
works = seen["through_a_preset", "Llama's"] == "end token <|end_of_text|>"
raise SystemExit(0 if works and set(fails.values()) == {described} else "such a tokenizer comes back now")
PROGRAM
