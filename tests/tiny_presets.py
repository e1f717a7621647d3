"""Tiny models with tokenizers, in place of the presets that README and guides name."""

import io
import string

import keras
import keras_hub
import numpy as np
import sentencepiece

TEXTS = ["the full rank of an update", "random bases and trainable diagonals"] * 2
# One batch for a causal language model.
TOKENS = {
    "token_ids": np.arange(8, dtype="int32")[None],
    "padding_mask": np.ones((1, 8), "int32"),
}


def words(**pieces):
    """Return a SentencePiece model that knows the words of `TEXTS`."""
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
        minloglevel=2,
        **pieces,
    )
    return proto.getvalue()


def tiny_gemma(dtype=None):
    """Return a Gemma 3 of one block that knows the words of `TEXTS`."""
    keras.utils.set_random_seed(0)  # the same "pretrained" weights every time
    proto = words(
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=["<img>", "<start_of_image>", "<end_of_image>"],
    )
    tokenizer = keras_hub.models.Gemma3Tokenizer(proto=proto)
    backbone = keras_hub.models.Gemma3Backbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        image_size=16,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
        head_dim=4,
        dtype=dtype,
    )
    preprocessor = keras_hub.models.Gemma3CausalLMPreprocessor(tokenizer)
    return keras_hub.models.Gemma3CausalLM(backbone=backbone, preprocessor=preprocessor)


def tiny_llama(dtype=None, width=8):
    """Return a Llama 3 of one block, with Llama 2's kind of tokenizer: it is fast."""
    keras.utils.set_random_seed(0)
    tokenizer = keras_hub.models.LlamaTokenizer(proto=words())
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=width,
        intermediate_dim=2 * width,
        dtype=dtype,
    )
    preprocessor = keras_hub.models.Llama3CausalLMPreprocessor(tokenizer)
    return keras_hub.models.Llama3CausalLM(backbone=backbone, preprocessor=preprocessor)


def tiny_mixtral():
    """Return a Mixtral of one block and three experts; the words are `TEXTS`'."""
    keras.utils.set_random_seed(0)
    tokenizer = keras_hub.models.MixtralTokenizer(proto=words())
    backbone = keras_hub.models.MixtralBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
        num_experts=3,
    )
    preprocessor = keras_hub.models.MixtralCausalLMPreprocessor(tokenizer)
    return keras_hub.models.MixtralCausalLM(
        backbone=backbone, preprocessor=preprocessor
    )


def tiny_bert(num_classes):
    """Return a BERT classifier of one block that knows the letters."""
    keras.utils.set_random_seed(0)
    letters = [start + letter for letter in string.ascii_lowercase for start in "# "]
    pieces = [letter.replace("#", "##").strip() for letter in letters]
    tokenizer = keras_hub.models.BertTokenizer(
        vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces],
        lowercase=True,
    )
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=tokenizer.vocabulary_size(),
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        dropout=0.0,
    )
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer)
    model = keras_hub.models.BertTextClassifier(
        backbone, num_classes=num_classes, preprocessor=preprocessor, dropout=0.0
    )
    for weight in model.trainable_weights:
        if len(weight.shape) > 1:
            weight.assign(weight * 10)  # so that words make a difference
    return model


def tiny_vit(num_classes):
    """Return a vision transformer of one block that looks at 32 × 32 pixels."""
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=(8, 8),
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=24,
    )
    converter = keras_hub.layers.ViTImageConverter(image_size=(32, 32), scale=1 / 255)
    return keras_hub.models.ViTImageClassifier(
        backbone,
        num_classes=num_classes,
        preprocessor=keras_hub.models.ViTImageClassifierPreprocessor(converter),
    )


BUILDERS = {
    "Gemma3CausalLM": tiny_gemma,
    "Llama3CausalLM": tiny_llama,
    "MixtralCausalLM": tiny_mixtral,
    "BertTextClassifier": tiny_bert,
    "ViTImageClassifier": tiny_vit,
}


def install(monkeypatch):
    """Make `from_preset` of these classes return tiny models."""
    for name, build in BUILDERS.items():
        monkeypatch.setattr(
            getattr(keras_hub.models, name),
            "from_preset",
            lambda preset, build=build, **options: build(**options),
        )
