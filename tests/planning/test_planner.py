"""The planner against what live models hold and what their steps allocate."""

import json
import math
import re
import resource
import sys

import keras
import numpy as np
import pytest
from backend import BACKEND
from keras import layers
from models import EXAMPLES, LLAMA, default_policy, mlp, structure_of, values_of
from peaks import next_token_batch, step_peak
from versions import NEEDS_INT4_EMBEDDINGS

import keras_randlora as kr

ITEM_SIZES = {"int8": 1, "bfloat16": 2, "float16": 2, "float32": 4}
# The published sizes of Llama 3 8B.
LLAMA_3_8B = dict(
    vocabulary_size=128256,
    num_layers=32,
    num_query_heads=32,
    num_key_value_heads=8,
    hidden_dim=4096,
    intermediate_dim=14336,
)


def bytes_of(variables):
    return sum(math.prod(v.shape) * ITEM_SIZES[v.dtype] for v in variables)


OPTIONS = {
    "defaults": {},
    "rank 1": dict(rank=1),
    "normal": dict(basis="normal"),
    "sparse": dict(basis="sparse"),
    "kronecker": dict(basis="kronecker"),
    "regenerated": dict(basis_storage="regenerated"),
    "few bases": dict(num_bases=2),
    "biases": dict(train_bias="all"),
}
CASES = [
    *(("attention", name) for name in OPTIONS),
    *((example, "biases") for example in EXAMPLES),
]


def assert_exact(model, options):
    """Assert that a plan holds what the model then holds, byte by byte."""
    base = bytes_of(model.weights)
    before = structure_of(model), values_of(model)
    planned = kr.plan(model, **options)
    assert (structure_of(model), values_of(model)) == before

    report = kr.enable_randlora(model, **options)
    optimizer = keras.optimizers.AdamW()
    optimizer.build(model.trainable_variables)
    adapter = [v for v in model.weights if v.path.split("/")[-2] == "randlora"]
    bank = [v for v in model.weights if v.path.split("/")[-2] == "randlora_bank"]
    assert planned.weights == base
    assert planned.adapter == bytes_of(adapter)
    assert planned.bases == bytes_of(bank)
    assert planned.gradients == bytes_of(model.trainable_variables)
    assert planned.optimizer == bytes_of(v for v in optimizer.variables if len(v.shape))
    assert (planned.trainable, planned.parameters) == (report.trainable, report.total)


@pytest.mark.parametrize("example, name", dict.fromkeys(CASES))
def test_what_is_held_is_exact(example, name):
    example = EXAMPLES[example]
    options = {"rank": 3, "targets": example.targets, **OPTIONS[name]}
    assert_exact(example.build(), options)


@pytest.mark.parametrize("policy", ["bfloat16", "mixed_bfloat16"])
def test_what_is_held_in_half_precision_is_exact(policy):
    with default_policy(policy):
        model = EXAMPLES["mlp"].build()
    hidden = ["hidden_1", "hidden_2"]
    options = dict(rank=3, targets=hidden, also_train="head", train_bias="adapted")
    assert_exact(model, options)


def tiny_llama(dtype="float32", **sizes):
    import keras_hub

    sizes = {**LLAMA, "tie_word_embeddings": True, **sizes}
    backbone = keras_hub.models.Llama3Backbone(**sizes, dtype=dtype)
    return keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)


def tiny_gemma(dtype="float32", **sizes):
    import keras_hub

    backbone = keras_hub.models.Gemma3Backbone(
        **{**LLAMA, "head_dim": 6, **sizes},
        image_size=None,
        vision_encoder=None,
        use_query_key_norm=True,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
        dtype=dtype,
    )
    return keras_hub.models.Gemma3CausalLM(None, backbone)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed_bfloat16"])
def test_a_configuration_gives_what_its_model_gives(dtype):
    options = dict(targets="all-linear", batch=3, sequence=7)
    config = {"class": "Llama3Backbone", "tie_word_embeddings": True, **LLAMA}
    assert kr.plan(config, 3, dtype=dtype, **options) == kr.plan(
        tiny_llama(dtype), 3, **options
    )


def test_a_preset_gives_what_its_model_gives(tmp_path):
    model = tiny_llama(tie_word_embeddings=False)
    model.backbone.save_to_preset(str(tmp_path))
    for weights in tmp_path.glob("*.h5"):
        weights.unlink()
    assert kr.plan(str(tmp_path), 3) == kr.plan(model, 3)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert kr.plan(config, 3) == kr.plan(tmp_path, 3)


def test_a_hugging_face_configuration():
    smollm2 = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
    }
    planned = kr.plan(smollm2, dtype="float32", targets="all-linear")
    assert planned.parameters == 134_515_008
    assert planned.weights == 4 * 134_515_008
    # 7 layers in each of 30 blocks: sides 576 and 192, bases of rank 32.
    assert planned.trainable == 30 * (5 * 18 * (32 + 576) + 2 * 6 * (32 + 192))


def peak_resident_bytes():
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_nothing_is_allocated_for_a_large_model():
    kr.plan({"class": "Llama3Backbone", **LLAMA})
    before = peak_resident_bytes()
    planned = kr.plan({"class": "Llama3Backbone", **LLAMA_3_8B}, dtype="bfloat16")
    mlp()(np.zeros((1, 6), "float32"))  # Keras would give waiting variables values
    assert planned.parameters == 8_030_261_248
    assert planned.weights == 2 * 8_030_261_248
    assert peak_resident_bytes() - before < 5e8


def quantizable():
    """Return a model of every kind of layer that Keras quantizes."""
    tokens = keras.Input((6,), dtype="int32")
    embedding = layers.ReversibleEmbedding(20, 300, name="tied")
    x = embedding(tokens) + layers.Embedding(20, 300, name="table")(tokens)
    x = layers.EinsumDense("btd,dnh->btnh", (None, 3, 5), bias_axes="h")(x)
    x = layers.EinsumDense("btnh,nhd->btd", (None, 300))(x)
    x = layers.Dense(7)(layers.LayerNormalization()(x))
    x = layers.ReversibleEmbedding(7, 7, tie_weights=False, name="untied")(
        x, reverse=True
    )
    return keras.Model(tokens, x)


@pytest.mark.parametrize(
    "build, mode, policy",
    [
        (quantizable, "int8", "float32"),
        (quantizable, "int4", "mixed_bfloat16"),
        (quantizable, "int4", "bfloat16"),
        (tiny_llama, "int8", "bfloat16"),
        pytest.param(tiny_llama, "int4", "float32", marks=NEEDS_INT4_EMBEDDINGS),
    ],
)
@pytest.mark.filterwarnings("ignore:.*quantize")
def test_quantized_weights_are_exact(build, mode, policy):
    with default_policy(policy):
        model = build() if build is quantizable else build(policy, hidden_dim=320)
        planned = kr.plan(model, 3, targets="all-linear", quantization=mode)
        model.quantize(mode)
    assert planned.weights == bytes_of(model.weights)


STEPS = {
    "llama": (tiny_llama, dict(batch=4, sequence=48), {}),
    "llama, long": (tiny_llama, dict(batch=1, sequence=300), {}),
    "llama, bfloat16": (tiny_llama, dict(batch=4, sequence=48), {"dtype": "bfloat16"}),
    "llama, words": (
        tiny_llama,
        dict(batch=4, sequence=32),
        dict(vocabulary_size=2000),
    ),
    "gemma, long": (tiny_gemma, dict(batch=1, sequence=300), {}),
}
SIZES = dict(num_layers=6, hidden_dim=96, intermediate_dim=256, vocabulary_size=400)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow does not tell")
@pytest.mark.parametrize(
    "name, targets", [*((name, "all-linear") for name in STEPS), ("llama", None)]
)
def test_the_peak_of_a_step(name, targets):
    build, step, sizes = STEPS[name]
    model = build(**{**SIZES, **sizes})
    planned = kr.plan(model, 8, targets=targets, **step)
    kr.enable_randlora(model, 8, targets)
    batch = next_token_batch(step["batch"], step["sequence"], 400)
    measured = step_peak(model, *batch)
    predicted = planned.activations + planned.logits + planned.temporaries
    assert predicted == pytest.approx(measured, rel=0.2)


def test_a_rematerialized_step_needs_less():
    options = dict(targets="all-linear", batch=4, sequence=64)
    model = tiny_llama(**SIZES)
    whole, remat = (kr.plan(model, 8, remat=remat, **options) for remat in (0, 1))
    assert remat.activations < whole.activations / 2
    assert remat.total < whole.total


def test_attention_without_scores_needs_less():
    options = dict(batch=1, sequence=1000)
    with_scores, without = (
        kr.plan(tiny_llama(), 8, flash_attention=flash, **options)
        for flash in (False, True)
    )
    # Two blocks, four heads, float32.
    assert with_scores.total - without.total >= 2 * 4 * 1000 * 1000 * 4


def test_int4_weights_are_dequantized_for_the_step():
    options = dict(targets="all-linear", sequence=8)
    plain, int4 = (
        kr.plan(tiny_llama(), 3, quantization=mode, **options)
        for mode in (None, "int4")
    )
    largest_kernel, embeddings = 16 * 20, 23 * 16
    extra = int4.temporaries - plain.temporaries
    assert extra == 4 * (largest_kernel + embeddings)


def test_what_comes_before_the_first_adapted_block_is_not_kept():
    model = tiny_llama(**SIZES)
    options = dict(targets="all-linear", batch=2, sequence=16)
    last, half, whole = (
        kr.plan(model, 8, layers=blocks, **options).activations
        for blocks in ([5], [3, 4, 5], None)
    )
    assert last < half < whole
    block = half - last
    assert whole - half == pytest.approx(1.5 * block, rel=0.01)


def test_whether_it_fits():
    planned = kr.plan({"class": "Llama3Backbone", **LLAMA_3_8B}, dtype="bfloat16")
    assert not planned.fits(16)
    assert planned.fits(planned.total / 1e9)
    assert planned.total == sum(
        getattr(planned, name)
        for name in (
            "weights bases adapter gradients optimizer activations logits temporaries"
        ).split()
    )


def test_the_table():
    planned = kr.plan(mlp(), 2, targets="all-linear", batch=500, sequence=1)
    table = str(planned)
    assert re.search(r"^weights +0\.000 GB$", table, re.MULTILINE)
    total = f"{planned.total / 1e9:.3f} GB"
    assert re.search(rf"^total +{re.escape(total)}$", table, re.MULTILINE)
    assert table.endswith(f"{planned.trainable} of 143 parameters trained.")


def test_the_table_of_a_notebook():
    page = kr.plan(mlp(), 2, targets="all-linear", batch=500, sequence=1)._repr_html_()
    assert page.count("<tr>") == 1 + 9  # titles, eight parts and the total
    assert '<td style="text-align: left">weights</td>' in page
    assert '<td style="text-align: right">0.000</td>' in page


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(model=3), TypeError, "Received: 3 (of type int)"),
        (dict(model={"num_layers": 2}), ValueError, "Received: class=None"),
        (
            dict(model={"class": "Llama3Backbon"}),
            ValueError,
            "Received: class='Llama3Backbon'. Nearest: ['Llama3Backbone'",
        ),
        (dict(model="no/such/folder"), ValueError, "preset 'no/such/folder'"),
        (dict(quantization="int3"), ValueError, "Received: quantization='int3'"),
        (dict(dtype="bfloat16"), ValueError, "Received: dtype='bfloat16'"),
        (dict(batch=0), ValueError, "Received: batch=0"),
        (dict(sequence=1.5), TypeError, "Received: sequence=1.5"),
        (dict(targets="qurey"), ValueError, "`targets` matches no layer"),
        (dict(basis="nonsense"), ValueError, "`basis` must be one of"),
    ],
)
def test_what_is_refused(arguments, error, message):
    arguments = {"model": mlp(), "targets": "all-linear", **arguments}
    with pytest.raises(error, match=re.escape(message)):
        kr.plan(**arguments)


def test_an_adapted_model_is_refused():
    model = mlp()
    kr.enable_randlora(model, 2, "all-linear")
    with pytest.raises(ValueError, match="is already adapted by RandLoRA"):
        kr.plan(model)


def mixtral(blocks):
    """Return a Mixtral with three experts of three matrices 16×24 a block."""
    import keras_hub

    return keras_hub.models.MixtralBackbone(
        vocabulary_size=23,
        num_layers=blocks,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        num_experts=3,
    )


def test_experts_are_planned_for():
    """Their banks are all computed, and kept with their updates."""
    model = mixtral(blocks=2)
    attention, experts = (
        kr.plan(model, 2, targets=targets, batch=2, sequence=8)
        for targets in ("attention", "experts")
    )
    banks = 2 * 3 * (3 * 16 * 24)  # blocks, experts, matrices of each
    assert experts.activations - attention.activations > 4 * banks / 2
    report = kr.enable_randlora(model, 2, "experts")
    assert (experts.trainable, experts.adapter) == (
        report.trainable,
        4 * report.adapter,
    )


def test_ranks_count_each_expert():
    model = mixtral(blocks=1)
    rank = kr.rank_like_lora(model, 2, "experts")
    lora = 3 * 3 * 2 * (16 + 24)
    counts = {}
    for other in range(1, 17):
        counts[other] = kr.enable_randlora(model, other, "experts").adapter
        kr.disable_randlora(model)
    assert rank == min(
        sorted(counts, reverse=True), key=lambda r: abs(counts[r] - lora)
    )
