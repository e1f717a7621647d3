"""The measured models, built alike in Keras and in transformers."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from benchmarks.cases import ALL_LINEAR

EXAMPLES = Path(__file__).parents[1] / "examples"
_BOTH = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
_BOTH |= {"attention_output": "o_proj"}
# A linear layer's name in keras-hub -> its name in transformers.
NAMES = {
    "llama": {
        **_BOTH,
        "feedforward_gate_dense": "gate_proj",
        "feedforward_intermediate_dense": "up_proj",
        "feedforward_output_dense": "down_proj",
    },
    "gemma": {
        **_BOTH,
        "ffw_gating": "gate_proj",
        "ffw_gating_2": "up_proj",
        "ffw_linear": "down_proj",
    },
}


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The sizes of a causal language model with tied embeddings.

    Attributes:
        family: `"llama"` or `"gemma"`.
        pretrained: Name in `examples/pretrained.py`; weights are random without.
    """

    family: str
    vocabulary: int
    blocks: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    pretrained: str | None = None

    def kernels(self) -> dict[str, tuple[int, int]]:
        """Return inputs and outputs of each linear layer of a block, by name."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sizes = {
            "q_proj": (self.hidden, wide),
            "k_proj": (self.hidden, narrow),
            "v_proj": (self.hidden, narrow),
            "o_proj": (wide, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }
        return {ours: sizes[theirs] for ours, theirs in NAMES[self.family].items()}

    def targeted(self, targets: tuple[str, ...]) -> list[str]:
        """Return the names of the targeted layers of a block.

        Raises:
            ValueError: A target is no such name.
        """
        names = list(self.kernels())
        if targets == (ALL_LINEAR,):
            return names
        unknown = [target for target in targets if target not in names]
        if unknown:
            raise ValueError(
                f"Targets are {ALL_LINEAR} or names among {names}. Received: {unknown}."
            )
        return [name for name in names if name in targets]


# Those named `-blocks` after a model have a few of its blocks and a vocabulary reduced
# alike: the head has the same share of the work as in the whole model.
MODELS = {
    "smollm2": Decoder("llama", 49152, 30, 576, 1536, 9, 3, 64, pretrained="smollm2"),
    "tiny": Decoder("llama", 64, 1, 16, 24, 4, 2, 4),
    "llama-12-blocks": Decoder("llama", 4096, 12, 512, 1408, 8, 4, 64),
    "llama-16-blocks": Decoder("llama", 16032, 16, 2048, 8192, 32, 8, 64),
    "llama3-1b-blocks": Decoder("llama", 16032, 2, 2048, 8192, 32, 8, 64),
    "gemma3-1b-blocks": Decoder("gemma", 20165, 2, 1152, 6912, 4, 1, 256),
    "llama3-8b-blocks": Decoder("llama", 16032, 4, 4096, 14336, 32, 8, 128),
    "gemma-2b-blocks": Decoder("gemma", 42667, 3, 2048, 16384, 8, 1, 256),
}


def build_keras(sizes: Decoder, dtype: str) -> Any:
    """Return the model in keras-hub."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    if sizes.pretrained:
        backbone = keras_hub.models.Backbone.from_preset(
            pretrained_folder(sizes.pretrained), dtype=dtype, layer_norm_epsilon=1e-5
        )
        return keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)
    options = dict(
        vocabulary_size=sizes.vocabulary,
        num_layers=sizes.blocks,
        num_query_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        hidden_dim=sizes.hidden,
        dtype=dtype,
    )
    if sizes.family == "llama":
        backbone = keras_hub.models.Llama3Backbone(
            **options, intermediate_dim=sizes.intermediate, tie_word_embeddings=True
        )
        return keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)
    # keras-hub counts the gate and the linear half of Gemma's feed-forward together.
    backbone = keras_hub.models.GemmaBackbone(
        **options, intermediate_dim=2 * sizes.intermediate, head_dim=sizes.head_dim
    )
    return keras_hub.models.GemmaCausalLM(backbone, preprocessor=None)


def build_transformers(sizes: Decoder, dtype: str) -> Any:
    """Return the model in transformers, with PyTorch's fused attention."""
    import torch
    import transformers

    torch.manual_seed(0)
    family = sizes.family.capitalize()
    model_class = getattr(transformers, f"{family}ForCausalLM")
    options = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
    if sizes.pretrained:
        folder = pretrained_folder(sizes.pretrained)
        return model_class.from_pretrained(folder, **options)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        tie_word_embeddings=True,
        pad_token_id=0,
        **options,
    )
    return model_class(config).to(options["dtype"])


def pretrained_folder(name: str) -> str:
    """Return the folder that `examples/pretrained.py` builds on first use."""
    if str(EXAMPLES) not in sys.path:
        sys.path.insert(0, str(EXAMPLES))
    import pretrained

    return pretrained.resolve(name)
