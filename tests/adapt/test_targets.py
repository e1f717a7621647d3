"""Targets: which layers the patterns select, and what is refused by name."""

import re

import keras
import numpy as np
import pytest
from keras import layers
from models import (
    EXAMPLES,
    Subclassed,
    attention,
    cnn,
    mlp,
    nested,
    structure_of,
    unbuilt_subclassed,
    values_of,
)
from test_diagnostics import tied

import keras_randlora as kr
from keras_randlora.adapt import select, select_addresses, sites

ATTENTION = ["mixer/query", "mixer/key", "mixer/value", "mixer/attention_output"]


def selected(model, **options):
    """Return the paths of the adapted layers."""
    return [s.path for s in select(model, kr.RandLoRAConfig(**options)).adapted]


def also_trained(model, **options):
    """Return the paths of the layers trained as they are."""
    return [s.path for s in select(model, kr.RandLoRAConfig(**options)).also_trained]


@pytest.fixture(scope="module")
def llama():
    return EXAMPLES["llama3"].build()


@pytest.fixture(scope="module")
def classifier():
    return attention()


def llama_paths(*names, blocks=(0, 1)):
    """Return the paths of these layers in each block."""
    return [f"transformer_layer_{block}/{name}" for block in blocks for name in names]


LLAMA_ATTENTION = [
    f"self_attention/{name}" for name in ("query", "key", "value", "attention_output")
]
LLAMA_MLP = [f"feedforward_{name}_dense" for name in ("intermediate", "gate", "output")]

# Patterns → paths in `attention()`.
PATTERNS = {
    "name": (["query"], ["mixer/query"]),
    "path": (["mixer/query"], ["mixer/query"]),
    "names in any order": (["value", "query"], ["mixer/query", "mixer/value"]),
    "the same twice": (["query", "mixer/query"], ["mixer/query"]),
    "glob on the name": (["*_output"], ["mixer/attention_output"]),
    "glob on the path": (["mixer/*ue*"], ["mixer/query", "mixer/value"]),
    "glob over layers of other kinds": (["*"], [*ATTENTION, "classifier"]),
    "character class": (["[qk]*"], ["mixer/query", "mixer/key"]),
    "expression": (["re:.*/(query|key)"], ["mixer/query", "mixer/key"]),
    "inside a container": (["mixer/*"], ATTENTION),
    "group attention": (["attention"], ATTENTION),
    "group and name": (["attention", "classifier"], [*ATTENTION, "classifier"]),
    "group all-linear": (["all-linear"], [*ATTENTION, "classifier"]),
    "default": (None, ATTENTION),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(classifier, name):
    targets, expected = PATTERNS[name]
    assert selected(classifier, targets=targets) == expected


# Options → paths in a Llama of two blocks.
LLAMA_CASES = {
    "default": ({}, llama_paths("self_attention/query", "self_attention/value")),
    "attention": (dict(targets="attention"), llama_paths(*LLAMA_ATTENTION)),
    "mlp": (dict(targets="mlp"), llama_paths(*LLAMA_MLP)),
    "all-linear": (
        dict(targets="all-linear"),
        llama_paths(*LLAMA_ATTENTION, *LLAMA_MLP),
    ),
    "suffix of the path": (
        dict(targets="self_attention/key"),
        llama_paths("self_attention/key"),
    ),
    "block by path": (
        dict(targets="transformer_layer_1/*/query"),
        llama_paths("self_attention/query", blocks=[1]),
    ),
    "block by index": (
        dict(targets="attention", layers=[1]),
        llama_paths(*LLAMA_ATTENTION, blocks=[1]),
    ),
    "blocks in any order": (
        dict(layers=[1, 0]),
        llama_paths("self_attention/query", "self_attention/value"),
    ),
    "exclude a name": (
        dict(targets="attention", exclude="attention_output"),
        llama_paths(*LLAMA_ATTENTION[:3]),
    ),
    "exclude a group": (
        dict(targets="all-linear", exclude="mlp"),
        llama_paths(*LLAMA_ATTENTION),
    ),
    "exclude a container's layers": (
        dict(targets="all-linear", exclude="*/self_attention/*"),
        llama_paths(*LLAMA_MLP),
    ),
}


@pytest.mark.parametrize("name", LLAMA_CASES)
def test_llama(llama, name):
    options, expected = LLAMA_CASES[name]
    assert selected(llama, **options) == expected


def test_all_linear_leaves_the_head_of_a_task_alone():
    model = EXAMPLES["bert"].build()
    paths = selected(model, targets="all-linear")
    assert "pooled_dense" in paths
    assert "logits" not in paths
    assert selected(model, targets="logits") == ["logits"]


def test_also_train_takes_layers_of_every_kind(classifier):
    options = dict(targets="query", also_train=["classifier", "norm", "embedding"])
    assert also_trained(classifier, **options) == ["embedding", "norm", "classifier"]
    assert selected(classifier, **options) == ["mixer/query"]


def test_layers_of_the_same_path_are_told_apart():
    model = nested()
    assert selected(model, targets="head") == ["head", "head#2"]
    assert selected(model, targets="head#2") == ["head#2"]


def test_a_layer_used_twice_is_found_once():
    model = EXAMPLES["shared"].build()
    assert selected(model, targets="twice") == ["twice"]


@pytest.mark.parametrize("name", ["sequential", "subclassed"])
def test_paths_do_not_depend_on_the_name_of_the_model(name):
    model = EXAMPLES[name].build()
    head = next(site for site in sites(model) if site.name == "head")
    assert head.layer.path == f"{name}/head"
    assert head.path == "head"
    assert selected(model, targets=f"{name}/head") == ["head"]


def test_the_number_of_a_model_is_no_block():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, Subclassed(name="encoder_7")(inputs), name="outer_3")
    blocks = {site.path: site.block_index for site in sites(model) if site.linear}
    assert blocks["encoder_7/head"] is None
    with pytest.raises(ValueError, match="`layers` names block 7, but the targets"):
        selected(model, targets="head", layers=[7])


# Models of layers that cannot be adapted


class ExpertBank(layers.Layer):
    """Two experts in one raw weight."""

    def build(self, input_shape):
        self.experts = self.add_weight(name="experts", shape=(2, input_shape[-1], 4))

    def call(self, inputs):
        return keras.ops.einsum("ab,ebc->ac", inputs, self.experts)


def curiosities():
    """Return a model with a layer of each kind that is refused by name."""
    inputs = keras.Input((4, 6))
    x = layers.EinsumDense("bnd,d->bnd", (4, 6), name="scale")(inputs)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(5, kernel_constraint="unit_norm", name="constrained")(x)
    x = layers.SpectralNormalization(layers.Dense(6, name="scaled"), name="wrapper")(x)
    x = ExpertBank(name="experts")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="curiosities")


def with_keras_lora():
    model = EXAMPLES["mlp"].build()
    model.get_layer("hidden_2").enable_lora(2)
    return model


def quantized():
    model = EXAMPLES["mlp"].build()
    model.get_layer("hidden_1").quantize("float8")
    return model


def unbuilt_sequential():
    return keras.Sequential([layers.Dense(4, name="dense")], name="unbuilt")


ADAPTS = (
    "RandLoRA adapts keras.layers.Dense and EinsumDense, convolutions without groups, "
    "and weights that layers use in matmuls."
)
LINEAR = (
    "Linear layers and weights are named ['query', 'key', 'value', "
    "'attention_output', 'classifier']."
)
REFUSALS = {
    "embedding": (
        attention,
        dict(targets="embedding"),
        f"Target 'embedding' matches 'embedding', a layer of type Embedding. {ADAPTS}",
    ),
    "norm": (
        attention,
        dict(targets="norm"),
        f"Target 'norm' matches 'norm', a layer of type LayerNormalization. {ADAPTS}",
    ),
    "container": (
        attention,
        dict(targets="mixer"),
        "Target 'mixer' matches 'mixer', a layer of type MultiHeadAttention. "
        f"{ADAPTS} To adapt the layers inside it, use 'mixer/*'.",
    ),
    "raw weights": (
        curiosities,
        dict(targets="experts"),
        "Target 'experts' matches 'experts/experts', a weight of shape (2, 6, 4). If "
        "it is used in a matmul, name its axes, such as weight_axes={'experts': 'batch",
    ),
    "constraint": (
        curiosities,
        dict(targets=["head", "constrained"]),
        "Layer 'constrained' has a `kernel_constraint`, which an update of the kernel",
    ),
    "rewritten kernel": (
        curiosities,
        dict(targets=["head", "scaled"]),
        "Layer 'wrapper/scaled' is wrapped in a SpectralNormalization, which rewrites "
        "the kernel in every training step. RandLoRA keeps it frozen;",
    ),
    "no product": (
        curiosities,
        dict(targets=["head", "scale"]),
        "Layer 'scale' cannot be adapted. The equation 'bnd,d->bnd' is not a product ",
    ),
    "Keras LoRA": (
        with_keras_lora,
        dict(targets=["hidden_1", "hidden_2"]),
        "Layer 'hidden_2' has Keras's LoRA enabled. Merge it first",
    ),
    "quantized": (
        quantized,
        dict(targets="all-linear"),
        "Layer 'hidden_1' is quantized as 'float8', which RandLoRA does not adapt: it ",
    ),
    "unbuilt subclassed": (
        unbuilt_subclassed,
        dict(targets="head"),
        "Model 'subclassed' is not built yet: 'dense_0' has no kernel. Call the model "
        "on one batch (or `model.build(input_shape)`) first.",
    ),
    "unbuilt sequential": (
        unbuilt_sequential,
        dict(targets="all-linear"),
        "Model 'unbuilt' is not built yet: 'dense' has no kernel.",
    ),
    "misspelt": (
        attention,
        dict(targets="qurey"),
        "`targets` matches no layer of the model. Received: 'qurey'. Nearest: "
        f"['query', 'mixer/query', 'key']. {LINEAR}",
    ),
    "one of two misspelt": (
        attention,
        dict(targets=["query", "clasifier"]),
        "`targets` matches no layer of the model. Received: 'clasifier'. Nearest: "
        f"['classifier']. {LINEAR}",
    ),
    "nothing near": (
        attention,
        dict(targets="zzz"),
        f"`targets` matches no layer of the model. Received: 'zzz'. {LINEAR}",
    ),
    "glob without a match": (attention, dict(targets="*/kee"), "Received: '*/kee'."),
    "expression of a part": (
        attention,
        dict(targets="re:mixer/que"),
        "Received: 're:mixer/que'.",
    ),
    "group without a match": (attention, dict(targets="mlp"), "Received: 'mlp'."),
    "exclude misspelt": (
        attention,
        dict(targets="attention", exclude="vallue"),
        "`exclude` matches no layer of the model. Received: 'vallue'. Nearest: "
        f"['value', 'mixer/value']. {LINEAR}",
    ),
    "everything excluded": (
        attention,
        dict(targets="query", exclude="attention", layers=[0]),
        "No layer is left to adapt: `exclude` removes all that `targets` selects. "
        "Received: targets=('query',), exclude=('attention',).",
    ),
    "also_train misspelt": (
        attention,
        dict(targets="query", also_train="embeding"),
        "`also_train` matches no layer of the model. Received: 'embeding'. Nearest: "
        "['embedding']. Layers are named ['input_layer",
    ),
    "also_train an adapted layer": (
        attention,
        dict(targets=["query", "classifier"], also_train="classifier"),
        "Layer 'classifier' is in both `targets` and `also_train`. Its kernel cannot "
        "be both frozen under an update and trained; leave it out of one of them.",
    ),
    "also_train what holds an adapted layer": (
        attention,
        dict(targets="query", also_train="mixer"),
        "Layer 'mixer/query' is in both `targets` and `also_train`.",
    ),
    "no attention": (
        cnn,
        {},
        "Model 'cnn' has no attention layers to adapt by default. Pass `targets`, for "
        "instance targets='all-linear'. Linear layers and weights: ['conv', 'dense', "
        "'head'].",
    ),
    "no blocks": (
        attention,
        dict(layers=[0]),
        "`layers` names block 0, but the targets are in blocks []. Received: "
        "layers=[0].",
    ),
    "a layer's own number is no block": (
        mlp,  # of "hidden_1" and "hidden_2"
        dict(targets="all-linear", layers=[1]),
        "`layers` names block 1, but the targets are in blocks []. Received: ",
    ),
    "numbered layers are no blocks of an mlp": (
        mlp,
        dict(targets="mlp"),
        "`targets` matches no layer of the model. Received: 'mlp'.",
    ),
    "basis without a seed": (
        attention,
        dict(basis="given"),
        "basis='given' is for bases that come with a file",
    ),
    "rank": (attention, dict(rank=0), "`rank` must be a positive integer. Received: "),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_leave_the_model_as_it_was(name):
    build, options, message = REFUSALS[name]
    model = build()
    before = structure_of(model), values_of(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        kr.enable_randlora(model, **{"rank": 2, **options})
    assert (structure_of(model), values_of(model)) == before


def test_a_missing_block_is_named(llama):
    before = structure_of(llama), values_of(llama)
    message = (
        "`layers` names block 2, but the targets are in blocks [0, 1]. Received: "
        "layers=[0, 2]."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        kr.enable_randlora(llama, rank=2, layers=[0, 2])
    assert (structure_of(llama), values_of(llama)) == before


def test_paths_of_two_layers_with_one_kernel_are_refused():
    model = tied(layers.Dense(4, name="in"))
    paths = [site.path for site in sites(model) if site.linear]
    assert len(paths) == 2
    with pytest.raises(ValueError, match="share one kernel"):
        select_addresses(model, paths, [])


@pytest.mark.parametrize("thing", [layers.Dense(3), "model.keras", None], ids=str)
def test_only_models_are_adapted(thing):
    with pytest.raises(TypeError, match="RandLoRA adapts a `keras.Model`. Received: "):
        kr.enable_randlora(thing, rank=2)


def test_the_layers_beside_refused_ones_are_adapted():
    model = curiosities()
    inputs = np.ones((1, 4, 6), "float32")
    before = keras.ops.convert_to_numpy(model(inputs))
    report = kr.enable_randlora(model, rank=2, targets="head")
    assert [layer.path for layer in report.layers] == ["head"]
    assert np.array_equal(keras.ops.convert_to_numpy(model(inputs)), before)


@keras.saving.register_keras_serializable("tests")
class Idle(keras.layers.Layer):
    """A layer with one child that it calls and one that it does not, as in SAM 3."""

    def __init__(self, **options):
        super().__init__(**options)
        self.used = keras.layers.Dense(5, name="used")
        self.idle = keras.layers.Dense(5, name="idle")

    def build(self, input_shape):
        self.used.build(input_shape)
        self.built = True

    def call(self, inputs):
        return self.used(inputs)


def test_a_layer_that_a_functional_model_never_calls():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, Idle(name="block")(inputs))
    assert not model.get_layer("block").idle.built
    with pytest.raises(ValueError, match="'block/idle' has no kernel: the model never"):
        kr.enable_randlora(model, rank=2, targets=["used", "idle"])
    report = kr.enable_randlora(model, rank=2, targets="all-linear")
    assert [layer.path for layer in report.layers] == ["block/used"]
    assert report.coverage == 1
