"""Adapters of Hugging Face PEFT in Keras, and adapters of Keras in PEFT.

transformers and PEFT run in processes of their own (`peft_worker.py`); this one
imports neither, and torch only where it is the backend or draws the bases.
"""

import os
import pathlib
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import peft_worker
import pretrained
import pytest
from keras_hub import models
from peft_worker import CASES, SMOLLM2
from safetensors.numpy import load_file

import keras_randlora as kr

WORKER = pathlib.Path(peft_worker.__file__)
WEIGHTS = "adapter_model.safetensors"
TOLERANCE = 1e-3
TINY = [name for name in CASES if name != SMOLLM2]

# family -> keras-hub's task
TASKS = {
    "llama": models.Llama3CausalLM,
    "mistral": models.MistralCausalLM,
    "qwen2": models.QwenCausalLM,
    "qwen3": models.Qwen3CausalLM,
    "smollm3": models.SmolLM3CausalLM,
    "phi3": models.Phi3CausalLM,
    "gemma": models.GemmaCausalLM,
    "gemma2": models.GemmaCausalLM,
    "gemma3": models.Gemma3CausalLM,
    "gpt2": models.GPT2CausalLM,
    "bert": models.BertTextClassifier,
    "roberta": models.RobertaTextClassifier,
    "distilbert": models.DistilBertTextClassifier,
    "vit": models.ViTImageClassifier,
    "pretrained": models.Llama3CausalLM,
}
# family -> heads of transformers by layers of keras-hub, which its converters leave
HEADS = {
    "bert": {"logits": "classifier"},
    "roberta": {"pooled_dense": "classifier.dense", "logits": "classifier.out_proj"},
    "distilbert": {"pooled_dense": "pre_classifier", "logits": "classifier"},
    "vit": {"predictions": "classifier"},
}
# one case of each family for our own adapters -> options of `enable_randlora`
OURS = {
    "llama dense": dict(basis="uniform"),
    "mistral": dict(basis="sparse"),
    "qwen2 biases": dict(basis="normal", train_bias="adapted"),
    "qwen3": dict(basis="binary"),
    "smollm3": dict(basis="very_sparse"),
    "phi3": dict(targets=["attention_output", "feedforward_output_dense"]),
    "gemma": dict(basis="ternary", sparsity=4),
    "gemma2": dict(basis="sparse"),
    "gemma3 dense": dict(basis_storage="regenerated"),
    "gpt2": dict(targets=["attention_output", "mlp"]),
    "bert dense": dict(train_bias="adapted", also_train="logits"),
    "roberta": dict(also_train=["pooled_dense", "logits"]),
    "distilbert": dict(also_train="logits"),
    "vit": dict(also_train="predictions", dropout=0.1),
}

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "Layer '.*' .* was passed an input with a mask attached to it:UserWarning",
        r"`build\(\)` was called on layer:UserWarning",
        "Explicitly requested dtype int64:UserWarning",
    )
]


def run_worker(*arguments):
    """Run the transformers and PEFT side."""
    command = [sys.executable, "-W", "ignore", WORKER, *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Return the folder of PEFT's tiny cases."""
    folder = tmp_path_factory.mktemp("peft")
    run_worker("train", folder, *TINY)
    return folder


@pytest.fixture(scope="session")
def ours(root, tmp_path_factory):
    """Return what Keras and what PEFT compute with adapters of ours, by case."""
    adapters = tmp_path_factory.mktemp("ours")
    computed = {}
    for name, options in OURS.items():
        model = build(root, name)
        kr.enable_randlora(model, **{"targets": "all-linear", "rank": 7, **options})
        perturb(model)
        computed[name] = compute(model, root, name)
        kr.peft.save(model, adapters / name)
    run_worker("outputs", root, adapters)
    return {
        name: (outputs, np.load(adapters / f"{name}.npz")["adapted"])
        for name, outputs in computed.items()
    }


@pytest.mark.parametrize("name", TINY)
def test_pefts_adapter_computes_in_keras_what_it_does_in_peft(root, name):
    model, data = build(root, name), np.load(root / name / "data.npz")
    assert_close(compute(model, root, name), data["plain"])
    assert np.abs(data["adapted"] - data["plain"]).max() > 20 * TOLERANCE
    kr.peft.load(model, root / name / "adapter")
    assert_close(compute(model, root, name), data["adapted"])


@pytest.mark.parametrize("name", [n for n in TINY if "drawn" not in n])
def test_pefts_tensors_come_back_bit_for_bit(root, name, tmp_path):
    model = build(root, name)
    kr.peft.load(model, root / name / "adapter")
    kr.peft.save(model, tmp_path / "ours")
    pefts = load_file(root / name / "adapter" / WEIGHTS)
    own = load_file(tmp_path / "ours" / WEIGHTS)
    for tensor, array in own.items():
        assert np.array_equal(pefts.pop(tensor), array), tensor
    repeated = {tensor.rpartition(".")[2] for tensor in pefts}
    assert repeated == {"randlora_A", "randlora_B"}


@pytest.mark.parametrize("name", OURS)
def test_our_adapter_computes_in_peft_what_it_does_in_keras(root, ours, name):
    in_keras, in_peft = ours[name]
    assert_close(in_keras, in_peft)
    plain = np.load(root / name / "data.npz")["plain"]
    assert np.abs(in_keras - plain).max() > 20 * TOLERANCE


def test_every_table_of_names_is_tried():
    tried = {task.backbone_cls.__name__ for task in TASKS.values()}
    tables = set(kr.peft_names.FAMILIES)
    assert tables - tried == {"LlamaBackbone"}  # loads as Llama3Backbone


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """Return a folder with SmolLM2-135M and an adapter that PEFT trained on it."""
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / SMOLLM2).mkdir()
    (folder / SMOLLM2 / "base").symlink_to(pretrained.smollm2())
    run_worker("train", folder, SMOLLM2)
    return folder


def test_smollm2_there(smollm2):
    model, data = build(smollm2, SMOLLM2), np.load(smollm2 / SMOLLM2 / "data.npz")
    assert_close(compute(model, smollm2, SMOLLM2), data["plain"])
    kr.peft.load(model, smollm2 / SMOLLM2 / "adapter")
    assert_close(compute(model, smollm2, SMOLLM2), data["adapted"])
    assert np.abs(data["adapted"] - data["plain"]).max() > 20 * TOLERANCE


def test_smollm2_and_back(smollm2, tmp_path):
    model = build(smollm2, SMOLLM2)
    report = kr.enable_randlora(model, rank=32, targets="all-linear")
    perturb(model, lambda_scale=0.002)
    folder = tmp_path / "adapters" / SMOLLM2
    kr.peft.save(model, folder)
    run_worker("outputs", smollm2, folder.parent)
    in_peft = np.load(folder.parent / f"{SMOLLM2}.npz")["adapted"]
    assert_close(compute(model, smollm2, SMOLLM2), in_peft)
    plain = np.load(smollm2 / SMOLLM2 / "data.npz")["plain"]
    assert np.abs(in_peft - plain).max() > 20 * TOLERANCE
    # λ and γ once, the bases once: between 1,536 inputs and 1,536 outputs.
    bases = 4 * (32 * 1536 + 1536 * 1536)
    size = (folder / WEIGHTS).stat().st_size
    assert size - bases - report.adapter_bytes < 100_000


# The Keras side


def build(root, name):
    """Build the Keras model of a case's base."""
    family, folder = CASES[name].family, root / name / "base"
    if family == "phi3":
        backbone = phi3_backbone(folder)
    else:
        options = {"layer_norm_epsilon": 1e-5} if family == "pretrained" else {}
        backbone = keras_hub.models.Backbone.from_preset(str(folder), **options)
    classes = {"num_classes": 3} if family in HEADS else {}
    model = TASKS[family](backbone=backbone, preprocessor=None, **classes)
    if family in HEADS:
        weights = load_file(folder / "model.safetensors")
        for layer, module in HEADS[family].items():
            model.get_layer(layer).kernel.assign(weights[f"{module}.weight"].T)
            model.get_layer(layer).bias.assign(weights[f"{module}.bias"])
    return model


def compute(model, root, name):
    """Return the logits for a case's inputs."""
    inputs = np.load(root / name / "data.npz")["inputs"]
    if inputs.ndim == 4:
        batch = np.transpose(inputs, (0, 2, 3, 1))
    else:
        ids = inputs.astype("int32")
        batch = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        if CASES[name].family == "bert":
            batch["segment_ids"] = np.zeros_like(ids)
    return keras.ops.convert_to_numpy(model(batch, training=False))


def perturb(model, lambda_scale=0.2):
    """Move λ by `lambda_scale`, and γ and what is trained beside by their own size."""
    rng = np.random.default_rng(3)
    state = kr.get_adapter(model)
    for path, value in state.items():
        scale = lambda_scale if path.endswith("/lambda") else 0.2 * np.abs(value).max()
        state[path] = value + scale * rng.standard_normal(value.shape)
    kr.set_adapter(model, state)


def phi3_backbone(folder):
    """Build Phi-3, for which keras-hub has no converter, weight by weight."""
    weights = load_file(folder / "model.safetensors")
    heads, groups, size = 4, 2, peft_worker.HIDDEN // 4
    backbone = models.Phi3Backbone(
        vocabulary_size=peft_worker.VOCABULARY,
        num_layers=2,
        num_query_heads=heads,
        num_key_value_heads=groups,
        hidden_dim=peft_worker.HIDDEN,
        intermediate_dim=peft_worker.INTERMEDIATE,
        layer_norm_epsilon=1e-5,
    )
    values = {
        "token_embedding/embeddings": weights["model.embed_tokens.weight"],
        "token_embedding/reverse_embeddings": weights["lm_head.weight"].T,
        "sequence_output_layernorm/scale": weights["model.norm.weight"],
    }
    for i in range(2):
        ours, theirs = f"transformer_layer_{i}", f"model.layers.{i}"
        fused = weights[f"{theirs}.self_attn.qkv_proj.weight"].T
        ends = [heads * size, (heads + groups) * size]
        query, key, value = np.split(fused, ends, axis=1)
        gate, up = np.split(weights[f"{theirs}.mlp.gate_up_proj.weight"].T, 2, axis=1)
        values |= {
            f"{ours}/pre_attention_layernorm/scale": weights[
                f"{theirs}.input_layernorm.weight"
            ],
            f"{ours}/post_attention_layernorm/scale": weights[
                f"{theirs}.post_attention_layernorm.weight"
            ],
            f"{ours}/attention/query/kernel": query,
            f"{ours}/attention/key/kernel": key,
            f"{ours}/attention/value/kernel": value,
            f"{ours}/attention/attention_output/kernel": weights[
                f"{theirs}.self_attn.o_proj.weight"
            ].T,
            f"{ours}/feedforward_gate_dense/kernel": gate,
            f"{ours}/feedforward_intermediate_dense/kernel": up,
            f"{ours}/feedforward_output_dense/kernel": weights[
                f"{theirs}.mlp.down_proj.weight"
            ].T,
        }
    for weight in backbone.weights:
        weight.assign(values.pop(weight.path).reshape(weight.shape))
    assert not values
    return backbone


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < TOLERANCE
