"""The README's Python runs, on tiny models in place of the presets it names."""

import io
import re
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
import sentencepiece

README = Path(__file__).parents[1] / "README.md"
TEXTS = ["the full rank of an update", "random bases and trainable diagonals"] * 2


def python_blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def tiny_gemma():
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=proto,
        vocab_size=48,
        model_type="WORD",
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=["<img>", "<start_of_image>", "<end_of_image>"],
        minloglevel=2,
    )
    tokenizer = keras_hub.models.Gemma3Tokenizer(proto=proto.getvalue())
    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        image_size=16,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
        head_dim=4,
    )
    preprocessor = keras_hub.models.Gemma3CausalLMPreprocessor(tokenizer)
    return keras_hub.models.Gemma3CausalLM(backbone=backbone, preprocessor=preprocessor)


def tiny_llama():
    keras.utils.set_random_seed(0)  # the same "pretrained" weights every time
    characters = sorted(set("".join(TEXTS)) | set("TheĠ"))
    special = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id"]
    special = ["th", *(f"<|{name}|>" for name in [*special, "eot_id"])]
    tokenizer = keras_hub.models.Llama3Tokenizer(
        vocabulary={token: i for i, token in enumerate(characters + special)},
        merges=["t h"],
    )
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
    )
    preprocessor = keras_hub.models.Llama3CausalLMPreprocessor(tokenizer)
    return keras_hub.models.Llama3CausalLM(backbone=backbone, preprocessor=preprocessor)


@pytest.fixture
def tiny_presets(monkeypatch):
    """Make `from_preset` of the README's models return tiny ones."""
    builders = {"Gemma3CausalLM": tiny_gemma, "Llama3CausalLM": tiny_llama}
    for name, build in builders.items():
        monkeypatch.setattr(
            getattr(keras_hub.models, name),
            "from_preset",
            lambda _, build=build: build(),
        )


def test_readme_has_its_three_examples():
    assert len(python_blocks()) == 3


# keras-hub hands a `tf.data.Dataset` to `fit`, which warns about its own default.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
def test_readme_runs(tiny_presets, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {"texts": TEXTS, "prompts": TEXTS, "responses": TEXTS}
    for block in python_blocks():
        exec(compile(block, str(README), "exec"), names)

    assert (tmp_path / "saved_model" / "saved_model.pb").is_file()
    trained, fresh = names["model"], names["fresh"]
    assert trained.randlora_summary().trainable == fresh.randlora_summary().trainable
    tokens = {
        "token_ids": np.arange(8, dtype="int32")[None],
        "padding_mask": np.ones((1, 8), "int32"),
    }
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(trained(tokens)),
        keras.ops.convert_to_numpy(fresh(tokens)),
    )
    assert len(names["classifier"].trainable_weights) == 4
