"""The transformers and PEFT side of `test_peft_interop.py`, in a process of its own.

    python peft_worker.py train ROOT CASE...     train adapters with PEFT
    python peft_worker.py outputs ROOT ADAPTERS  compute with our adapters

`train` writes `ROOT/<case>/base` (a tiny random model), `ROOT/<case>/adapter` (trained
a few steps) and `ROOT/<case>/data.npz` (inputs, and outputs without and with it).
`outputs` reads `ADAPTERS/<case>`, with the base of the same case, and writes
`ADAPTERS/<case>.npz`.
"""

import dataclasses
import pathlib
import sys

import numpy as np

BATCH, LENGTH, VOCABULARY = 2, 7, 37
HIDDEN, INTERMEDIATE = 24, 40
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
SMOLLM2 = "smollm2"


@dataclasses.dataclass(frozen=True)
class Case:
    """One adapter of PEFT.

    Attributes:
        family: A key of `MODELS`; `"pretrained"` where the base is there already.
        targets: `target_modules`.
        options: Further options of `RandLoraConfig`. Rank 5 divides no side.
    """

    family: str
    targets: tuple[str, ...]
    options: dict = dataclasses.field(default_factory=dict)


_BERT = ("query", "value", "intermediate.dense", "pooler.dense")
CASES = {
    "llama dense": Case("llama", ATTENTION + MLP),
    "llama sparse": Case("llama", ("q_proj", "v_proj", "down_proj"), {"sparse": True}),
    "llama very sparse": Case("llama", ("k_proj", *MLP), {"very_sparse": True}),
    "llama dense drawn": Case("llama", ATTENTION + MLP, {"save_projection": False}),
    "llama sparse drawn": Case(
        "llama", ATTENTION, {"sparse": True, "save_projection": False}
    ),
    "llama very sparse drawn": Case(
        "llama", MLP, {"very_sparse": True, "save_projection": False}
    ),
    "llama large rank": Case("llama", ("k_proj", "up_proj"), {"r": 30}),
    "llama first block": Case("llama", ATTENTION, {"layers_to_transform": [0]}),
    "mistral": Case("mistral", ATTENTION + MLP),
    "qwen2 biases": Case("qwen2", ATTENTION + MLP, {"bias": "randlora_only"}),
    "qwen3": Case("qwen3", ATTENTION + MLP),
    "smollm3": Case("smollm3", ATTENTION + MLP),
    "phi3": Case("phi3", ("o_proj", "down_proj")),
    "gemma": Case("gemma", ATTENTION + MLP),
    "gemma2": Case("gemma2", ATTENTION + MLP),
    "gemma3 dense": Case("gemma3", ATTENTION + MLP),
    "gemma3 sparse": Case("gemma3", ("q_proj", "up_proj"), {"sparse": True}),
    "gemma3 drawn": Case("gemma3", ("o_proj", "v_proj"), {"save_projection": False}),
    "gpt2": Case("gpt2", ("c_proj", "c_fc")),
    "bert dense": Case("bert", _BERT),
    "bert very sparse": Case("bert", ("value", "output.dense"), {"very_sparse": True}),
    "bert classifier": Case("bert", _BERT, {"modules_to_save": ["classifier"]}),
    "bert biases": Case(
        "bert", ("query", "attention.output.dense"), {"bias": "randlora_only"}
    ),
    "roberta": Case("roberta", ("query", "key"), {"modules_to_save": ["classifier"]}),
    "distilbert": Case(
        "distilbert", ("q_lin", "lin1", "lin2"), {"modules_to_save": ["classifier"]}
    ),
    "vit": Case(
        "vit", ("v_proj", "o_proj", "fc1"), {"modules_to_save": ["classifier"]}
    ),
    "vit dense": Case("vit", ("q_proj", "fc2")),
    SMOLLM2: Case("pretrained", ("q_proj", "v_proj"), {"r": 20}),
}

_DECODER = dict(
    vocab_size=VOCABULARY,
    hidden_size=HIDDEN,
    intermediate_size=INTERMEDIATE,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
_ENCODER = dict(
    vocab_size=VOCABULARY,
    hidden_size=HIDDEN,
    intermediate_size=INTERMEDIATE,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=66,
    pad_token_id=1,
    num_labels=3,
)
_GPT2 = dict(
    vocab_size=VOCABULARY,
    n_embd=HIDDEN,
    n_layer=2,
    n_head=4,
    n_positions=64,
    bos_token_id=1,
    eos_token_id=2,
)
_DISTILBERT = dict(
    vocab_size=VOCABULARY,
    dim=HIDDEN,
    hidden_dim=INTERMEDIATE,
    n_layers=2,
    n_heads=4,
    num_labels=3,
)
_VIT = dict(
    hidden_size=HIDDEN,
    intermediate_size=INTERMEDIATE,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=16,
    patch_size=8,
    num_labels=3,
)

# family -> (model class, configuration class, its options)
MODELS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _DECODER),
    "mistral": ("MistralForCausalLM", "MistralConfig", _DECODER),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _DECODER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_DECODER, "head_dim": 10}),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", _DECODER),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _DECODER),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_DECODER, "head_dim": 10}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {**_DECODER, "head_dim": 10, "query_pre_attn_scalar": 10},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {**_DECODER, "head_dim": 10, "query_pre_attn_scalar": 10},
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "bert": ("BertForSequenceClassification", "BertConfig", _ENCODER),
    "roberta": (
        "RobertaForSequenceClassification",
        "RobertaConfig",
        {**_ENCODER, "layer_norm_eps": 1e-5},
    ),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        _DISTILBERT,
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", _VIT),
}


def train(root, *names):
    """Train an adapter for each of these cases."""
    for name in map(str, names):
        case, folder = CASES[name], root / name
        if case.family == "pretrained":
            base = load(root, name)
        else:
            base = build(case.family)
            base.save_pretrained(folder / "base")
        inputs = make_inputs(case.family)
        plain = compute(base, inputs)
        model = adapted(base, case, inputs)
        model.save_pretrained(folder / "adapter")
        data = {"inputs": inputs, "plain": plain, "adapted": compute(model, inputs)}
        np.savez(folder / "data.npz", **data)


def outputs(root, adapters):
    """Compute with every adapter folder in `adapters`."""
    import peft

    for folder in sorted(adapters.iterdir()):
        model = peft.PeftModel.from_pretrained(load(root, folder.name), folder)
        inputs = np.load(root / folder.name / "data.npz")["inputs"]
        np.savez(adapters / f"{folder.name}.npz", adapted=compute(model, inputs))


def load(root, name):
    """Load the base model of a case."""
    import transformers

    family = CASES[name].family
    kind = MODELS[family][0] if family in MODELS else "AutoModelForCausalLM"
    folder = root / name / "base"
    return getattr(transformers, kind).from_pretrained(folder, dtype="float32")


def build(family):
    """Build a tiny model; float16 holds its weights exactly, as a converter rounds."""
    import torch
    import transformers

    model_class, config_class, options = MODELS[family]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**options)
    model = getattr(transformers, model_class)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.1 * torch.randn_like(parameter)
            parameter.copy_((parameter + noise).half().float())
            if family == "roberta" and "token_type" in name:
                parameter.zero_()  # keras-hub has no such embeddings
    return model.eval()


def make_inputs(family):
    """Draw token ids, or images with the channels first."""
    rng = np.random.default_rng(0)
    if family == "vit":
        return rng.random((BATCH, 3, 16, 16), "float32")
    return rng.integers(3, VOCABULARY, (BATCH, LENGTH))


def compute(model, inputs):
    """Return the logits."""
    import torch

    with torch.no_grad():
        return model.eval()(torch.from_numpy(inputs)).logits.numpy()


def adapted(base, case, inputs):
    """Return the model with an adapter of PEFT, trained a few steps."""
    import peft
    import torch

    options = {"r": 5, "randlora_alpha": 10, **case.options}
    config = peft.RandLoraConfig(target_modules=list(case.targets), **options)
    model = peft.get_peft_model(base, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    torch.manual_seed(1)
    for _ in range(5):
        logits = model(torch.from_numpy(inputs)).logits
        labels = torch.randint(logits.shape[-1], logits.shape[:-1])
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2), labels.flatten()
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"train": train, "outputs": outputs}[command](*map(pathlib.Path, paths))
