"""PEFT RandLora folders: written by hand in PEFT's layout, read, and written again."""

import json
import math
import os
import re
import sys
from pathlib import Path

import keras
import ml_dtypes
import models
import numpy as np
import pytest
import reference
from backend import assert_close, assert_same_arrays
from keras import ops
from peft_arrays import (
    ALPHA,
    MLP_MODULES,
    MLP_NAMES,
    RANK,
    WEIGHTS,
    peft_arrays,
    write,
)
from safetensors.numpy import load_file
from versions import KERAS_HUB

import keras_randlora as kr
from keras_randlora.adapt import sites
from keras_randlora.files.adapter_file import write_adapter
from keras_randlora.peft import folder as peft_folder
from keras_randlora.peft import names as peft_names

# module of transformers -> (path in keras-hub, inputs, outputs), of models.llama3()
LLAMA_MODULES = {
    "layers.0.self_attn.q_proj": ("transformer_layer_0/self_attention/query", 16, 16),
    "layers.1.self_attn.k_proj": ("transformer_layer_1/self_attention/key", 16, 8),
    "layers.1.self_attn.o_proj": (
        "transformer_layer_1/self_attention/attention_output",
        16,
        16,
    ),
    "layers.0.mlp.up_proj": (
        "transformer_layer_0/feedforward_intermediate_dense",
        16,
        20,
    ),
    "layers.1.mlp.down_proj": (
        "transformer_layer_1/feedforward_output_dense",
        20,
        16,
    ),
}


def as_peft_saves(tensors):
    """Repeat the bases below each module, as PEFT does."""
    repeated = dict(tensors)
    for name in tensors:
        module, _, kind = name.rpartition(".")
        if kind == "randlora_lambda":
            for basis in ("randlora_A", "randlora_B"):
                repeated[f"{module}.{basis}"] = tensors[f"base_model.{basis}"]
    return repeated


def read(folder):
    """Return the tensors of a folder that holds the bases once, below one module."""
    tensors = load_file(folder / WEIGHTS)
    for basis in ("randlora_A", "randlora_B"):
        (name,) = [name for name in tensors if name.endswith(f".{basis}")]
        tensors[f"base_model.{basis}"] = tensors.pop(name)
    return tensors


def mlp_folder(tmp_path, **options):
    """Write an adapter of `models.mlp()` with made-up module names."""
    return write(tmp_path / "mlp", peft_arrays(MLP_MODULES), **options)


def peft_update(tensors, module, inputs, outputs, prefix=""):
    """Return what PEFT adds to `weight.T`, by the paper's formula in loops."""
    name = f"base_model.model.{prefix}{module}"
    lambda_ = tensors[f"{name}.randlora_lambda"]
    bases, larger = lambda_.shape[1], max(inputs, outputs)
    factors = reference.Factors(
        lambda_=lambda_,
        gamma=tensors[f"{name}.randlora_gamma"],
        basis_a=tensors["base_model.randlora_A"][:, 0, : min(inputs, outputs)],
        basis_b=tensors["base_model.randlora_B"][:larger, :bases].reshape(larger, -1),
    )
    return reference.kernel_update(inputs, outputs, factors, ALPHA / RANK)


def array(tensor):
    return np.array(ops.convert_to_numpy(tensor))


def layers_by_path(model):
    return {site.path: site.layer for site in sites(model)}


def as_matrix(layer, kernel):
    """Return a kernel of Llama's or Dense layers as `(inputs, outputs)`."""
    kernel = array(kernel)
    inputs = math.prod(kernel.shape[: 2 if layer.name == "attention_output" else 1])
    return kernel.reshape(inputs, -1)


# Reading


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_load_adds_pefts_update_to_each_kernel(tmp_path, prefix):
    tensors = peft_arrays(LLAMA_MODULES, prefix)
    folder = write(tmp_path / "adapter", as_peft_saves(tensors))
    model = models.EXAMPLES["llama3"].build()
    report = kr.peft.load(model, folder)
    assert len(report.layers) == len(LLAMA_MODULES)
    layers = layers_by_path(model)
    for module, (path, inputs, outputs) in LLAMA_MODULES.items():
        layer = layers[path]
        expected = peft_update(tensors, module, inputs, outputs, prefix)
        update = as_matrix(layer, layer.merged_kernel()) - as_matrix(
            layer, layer._kernel
        )
        assert np.allclose(update, expected, rtol=1e-4, atol=1e-5)
        assert np.abs(expected).max() > 0.1


def test_load_keeps_every_number(tmp_path):
    tensors = peft_arrays(LLAMA_MODULES, "model.")
    model = models.EXAMPLES["llama3"].build()
    kr.peft.load(model, write(tmp_path / "adapter", tensors))
    state = kr.get_adapter(model)
    for module, (path, _, _) in LLAMA_MODULES.items():
        name = f"base_model.model.model.{module}"
        assert np.array_equal(
            state[f"{path}/lambda"], tensors[f"{name}.randlora_lambda"]
        )
        assert np.array_equal(state[f"{path}/gamma"], tensors[f"{name}.randlora_gamma"])


def test_load_takes_the_options(tmp_path):
    model = models.mlp()
    folder = mlp_folder(tmp_path, randlora_dropout=0.25)
    report = kr.peft.load(model, folder, name_map=MLP_NAMES)
    config = kr.adapt.adapted_state(model).config
    assert (config.rank, config.alpha, config.dropout) == (RANK, ALPHA, 0.25)
    assert (config.basis, config.num_bases) == ("given", None)
    assert config.targets == ("hidden_1", "hidden_2")
    assert [layer.path for layer in report.layers] == ["hidden_1", "hidden_2"]


def test_load_takes_pefts_defaults_for_missing_options(tmp_path):
    folder = mlp_folder(tmp_path)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    for name in ("randlora_alpha", "randlora_dropout", "bias", "modules_to_save"):
        del config[name]
    path.write_text(json.dumps(config))
    model = models.mlp()
    kr.peft.load(model, folder, name_map=MLP_NAMES)
    taken = kr.adapt.adapted_state(model).config
    assert (taken.alpha, taken.dropout, taken.train_bias) == (640.0, 0.0, "none")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_load_reads_half_precision(tmp_path, dtype):
    tensors = {n: a.astype(dtype) for n, a in peft_arrays(MLP_MODULES).items()}
    model = models.mlp()
    kr.peft.load(model, write(tmp_path / "half", tensors), name_map=MLP_NAMES)
    loaded = kr.get_adapter(model)["hidden_1/gamma"]
    expected = tensors["base_model.model.fc.0.randlora_gamma"].astype("float32")
    assert np.array_equal(loaded, expected)
    assert loaded.dtype == np.float32


def test_load_trains_on(tmp_path):
    example = models.EXAMPLES["mlp"]
    model = example.build()
    kr.peft.load(model, mlp_folder(tmp_path), name_map=MLP_NAMES)
    before, kernel = kr.get_adapter(model), array(model.get_layer("hidden_1")._kernel)
    example.fit(model)
    after = kr.get_adapter(model)
    assert all(not np.array_equal(after[path], before[path]) for path in before)
    assert np.array_equal(array(model.get_layer("hidden_1")._kernel), kernel)


def test_name_map_comes_before_the_table(tmp_path):
    modules = {"other.q": LLAMA_MODULES["layers.0.self_attn.q_proj"]}
    folder = write(tmp_path / "adapter", peft_arrays(modules))
    model = models.EXAMPLES["llama3"].build()
    path = modules["other.q"][0]
    report = kr.peft.load(model, folder, name_map={path: "other.q"})
    assert [layer.path for layer in report.layers] == [path]


def test_biases_of_adapted_layers_are_loaded(tmp_path):
    bias = np.arange(10, dtype="float32")
    tensors = peft_arrays({"fc.0": MLP_MODULES["fc.0"]})
    tensors["base_model.model.fc.0.base_layer.bias"] = bias
    folder = write(tmp_path / "biases", tensors, bias="randlora_only")
    model = models.mlp()
    kr.peft.load(model, folder, name_map=MLP_NAMES)
    assert np.array_equal(kr.get_adapter(model)["hidden_1/bias"], bias)
    assert np.array_equal(array(model.get_layer("hidden_1").bias), bias)


def test_a_classifier_trained_whole_is_loaded(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((models.CLASSES, 16)).astype("float32")
    modules = {
        "bert.encoder.layer.0.attention.self.query": (None, 16, 16),
        "bert.pooler.dense": (None, 16, 16),
    }
    tensors = peft_arrays(modules)
    tensors["base_model.model.classifier.weight"] = weight
    tensors["base_model.model.classifier.bias"] = np.ones(models.CLASSES, "float32")
    folder = write(tmp_path / "head", tensors, modules_to_save=["classifier"])
    model = models.EXAMPLES["bert"].build()
    kr.peft.load(model, folder)
    head = model.get_layer("logits")
    assert np.array_equal(array(head.kernel), weight.T)
    assert np.array_equal(array(head.bias), np.ones(models.CLASSES))
    assert head.kernel.trainable
    assert "logits/kernel" in kr.get_adapter(model)


def test_neither_peft_nor_torch_is_imported(tmp_path):
    before = set(sys.modules)
    model = models.mlp()
    kr.peft.load(model, mlp_folder(tmp_path), name_map=MLP_NAMES)
    kr.peft.save(model, tmp_path / "again", name_map=MLP_NAMES)
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert not new & {"torch", "peft", "transformers", "accelerate"}
    if keras.backend.backend() != "torch":
        assert "torch" not in sys.modules


# There and back


def test_save_writes_what_load_read(tmp_path):
    tensors = peft_arrays(LLAMA_MODULES, "model.")
    model = models.EXAMPLES["llama3"].build()
    kr.peft.load(model, write(tmp_path / "peft", as_peft_saves(tensors)))
    kr.peft.save(model, tmp_path / "ours")
    assert_same_arrays(read(tmp_path / "ours"), tensors, ordered=False)


@pytest.mark.parametrize(
    "basis", ["uniform", "kronecker", "binary", "sparse", "very_sparse"]
)
@pytest.mark.parametrize("storage", ["stored", "regenerated"])
def test_a_seeded_adapter_comes_back_from_its_folder(tmp_path, basis, storage):
    model = models.EXAMPLES["mlp"].build()
    options = dict(rank=RANK, targets="all-linear", exclude="head")
    kr.enable_randlora(model, **options, basis=basis, basis_storage=storage, seed=3)
    state = models.randomize(model, scale=1.0, seed=5)
    kr.peft.save(model, tmp_path / "adapter", name_map=MLP_NAMES)
    expected = array(model.get_layer("hidden_1").merged_kernel())
    other = models.EXAMPLES["mlp"].build()
    kr.peft.load(other, tmp_path / "adapter", name_map=MLP_NAMES)
    assert_same_arrays(kr.get_adapter(other), state)
    merged = array(other.get_layer("hidden_1").merged_kernel())
    assert_close(merged, expected, 1e-6)


def test_save_writes_the_bases_once_in_pefts_sizes(tmp_path):
    model = models.EXAMPLES["llama3"].build()
    targets = ["feedforward_intermediate_dense", "feedforward_output_dense"]
    kr.enable_randlora(model, rank=RANK, targets=targets)
    kr.peft.save(model, tmp_path / "adapter")
    shapes = {name: array.shape for name, array in read(tmp_path / "adapter").items()}
    # 16 to 20 and 20 to 16: PEFT takes the largest input and the largest output, 20.
    assert shapes.pop("base_model.randlora_A") == (RANK, 1, 20)
    assert shapes.pop("base_model.randlora_B") == (20, 7, RANK)
    assert len(shapes) == 2 * 4
    assert shapes["base_model.model.model.layers.1.mlp.up_proj.randlora_gamma"] == (
        6,
        16,
    )


def test_save_writes_the_configuration_that_peft_reads(tmp_path):
    model = models.EXAMPLES["llama3"].build()
    kr.enable_randlora(model, rank=RANK, targets="query", alpha=6, dropout=0.1)
    auto = dict(base_model="somebody/llama", task_type="CAUSAL_LM")
    kr.peft.save(model, tmp_path / "adapter", **auto)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config == {
        "peft_type": "RANDLORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": "somebody/llama",
        "r": 3,
        "randlora_alpha": 6,
        "randlora_dropout": 0.1,
        "target_modules": (
            r"model\.layers\.0\.self_attn\.q_proj|model\.layers\.1\.self_attn\.q_proj"
        ),
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "save_projection": True,
        "projection_prng_key": 0,
        "sparse": False,
        "very_sparse": False,
    }


@pytest.mark.parametrize(
    "part, prefix, expected",
    [
        ("task", None, "model.layers.0.self_attn.q_proj"),
        ("backbone", None, "layers.0.self_attn.q_proj"),
        ("backbone", "model.", "model.layers.0.self_attn.q_proj"),
        ("task", "base.", "base.layers.0.self_attn.q_proj"),
    ],
)
def test_save_names_modules_as_the_matching_model_does(
    tmp_path, part, prefix, expected
):
    model = models.EXAMPLES["llama3"].build()
    model = model if part == "task" else model.backbone
    kr.enable_randlora(model, rank=RANK, targets="query", layers=[0])
    kr.peft.save(model, tmp_path / "adapter", prefix=prefix)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == re.escape(expected)
    assert f"base_model.model.{expected}.randlora_lambda" in read(tmp_path / "adapter")


def test_head_and_biases_come_back(tmp_path):
    model = models.EXAMPLES["bert"].build()
    options = dict(rank=RANK, targets=["query", "attention_output"])
    kr.enable_randlora(model, **options, also_train="logits", train_bias="adapted")
    state = models.randomize(model, scale=1.0, seed=5)
    kr.peft.save(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == [".classifier"]
    assert config["bias"] == "randlora_only"
    tensors = read(tmp_path / "adapter")
    assert tensors["base_model.model.classifier.weight"].shape == (models.CLASSES, 16)
    query = "base_model.model.bert.encoder.layer.0.attention.self.query"
    assert tensors[f"{query}.base_layer.bias"].shape == (16,)
    other = models.EXAMPLES["bert"].build()
    kr.peft.load(other, tmp_path / "adapter")
    assert_same_arrays(kr.get_adapter(other), state)
    assert np.array_equal(
        models.EXAMPLES["bert"].outputs(other), models.EXAMPLES["bert"].outputs(model)
    )


def test_save_overwrites_only_if_told_to(tmp_path):
    model = models.mlp()
    kr.enable_randlora(model, rank=RANK, targets="hidden_1")
    kr.peft.save(model, tmp_path / "adapter", name_map=MLP_NAMES)
    state = models.randomize(model, scale=1.0, seed=5)
    with pytest.raises(FileExistsError, match="exists. Choose another place, or pass"):
        kr.peft.save(model, tmp_path / "adapter", name_map=MLP_NAMES)
    kr.peft.save(model, tmp_path / "adapter", name_map=MLP_NAMES, overwrite=True)
    other = models.mlp()
    kr.peft.load(other, tmp_path / "adapter", name_map=MLP_NAMES)
    assert_same_arrays(kr.get_adapter(other), state)
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_save_never_replaces_other_files(tmp_path):
    model = models.mlp()
    kr.enable_randlora(model, rank=RANK, targets="hidden_1")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "note").write_text("a file")
    for place, found in {"thesis": "It holds 'chapter.txt'", "note": "a file"}.items():
        with pytest.raises(FileExistsError, match=f"is not replaced. .*{found}"):
            kr.peft.save(model, tmp_path / place, name_map=MLP_NAMES, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def full(*args, **kwargs):
    raise OSError("No space left on device")


def locked(source, target, rename=os.rename):
    if Path(source).parent.name == "written":
        raise PermissionError("The folder is in use")
    rename(source, target)


@pytest.mark.parametrize(
    "owner, name, failing, message",
    [
        (peft_folder, "serialize", full, "No space left"),
        (os, "rename", locked, "is in use"),
    ],
    ids=["writing", "renaming"],
)
def test_a_save_that_fails_leaves_the_former_folder(
    tmp_path, monkeypatch, owner, name, failing, message
):
    model = models.mlp()
    kr.enable_randlora(model, rank=RANK, targets="hidden_1")
    kr.peft.save(model, tmp_path / "adapter", name_map=MLP_NAMES)
    former = (tmp_path / "adapter" / WEIGHTS).read_bytes()
    models.randomize(model, scale=1.0, seed=5)
    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(OSError, match=message):
        kr.peft.save(model, tmp_path / "adapter", name_map=MLP_NAMES, overwrite=True)
    assert (tmp_path / "adapter" / WEIGHTS).read_bytes() == former
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


# Names


@pytest.mark.parametrize("name", ["llama3", "gemma3", "bert", "vit"])
def test_every_linear_layer_of_a_family_has_one_name(name):
    model = models.EXAMPLES[name].build()
    names = peft_names.ModuleNames(model)
    dense = keras.layers.Dense, keras.layers.EinsumDense
    linear = [site for site in sites(model) if isinstance(site.layer, dense)]
    by_module = names.modules(linear)
    assert len(by_module) == len(linear) > 0
    assert {site.path for site in names.sites(by_module).values()} == {
        site.path for site in linear
    }


def test_blocks_are_counted_from_zero_in_transformers():
    model = models.EXAMPLES["vit"].build()
    names = peft_names.ModuleNames(model)
    block = "transformer" if KERAS_HUB >= (0, 30) else "tranformer"  # sic
    path = f"vit_encoder/{block}_block_1/mha/query"
    assert names.site("vit.layers.0.attention.q_proj").path == path
    assert names.site("vit.encoder.layer.0.attention.attention.query").path == path


def test_tables_share_no_name():
    for family in peft_names.FAMILIES.values():
        modules = [*family.modules.values(), *family.fused, *family.heads.values()]
        assert len(set(modules)) == len(modules)
        layers = [*family.modules, *sum(family.fused.values(), ()), *family.heads]
        assert len(set(layers)) == len(layers)


def gpt2():
    import keras_hub

    return keras_hub.models.GPT2Backbone(
        vocabulary_size=models.VOCABULARY,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
    )


def test_gpt2_is_saved_as_conv1d(tmp_path):
    model = gpt2()
    kr.enable_randlora(model, rank=RANK, targets="mlp")
    kr.peft.save(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True
    assert config["target_modules"] == r"h\.0\.mlp\.c_fc|h\.0\.mlp\.c_proj"


# Refusals: by name, and nothing has changed


def assert_load_refused(model, folder, match, error=ValueError, **kwargs):
    before = models.structure_of(model)
    with pytest.raises(error, match=match):
        kr.peft.load(model, folder, **kwargs)
    assert models.structure_of(model) == before


def changed_arrays(change):
    """Return the arrays of an adapter of `models.mlp()` after `change(arrays)`."""
    arrays = peft_arrays(MLP_MODULES)
    change(arrays)
    return arrays


def move(old, new):
    return lambda arrays: arrays.update({new: arrays.pop(old)})


LAMBDA = "base_model.model.fc.0.randlora_lambda"
GAMMA = "base_model.model.fc.0.randlora_gamma"

BAD_ARRAYS = {
    "no γ": (
        lambda arrays: arrays.pop(GAMMA),
        f"lacks the tensor '{GAMMA}'",
    ),
    "no λ": (
        lambda arrays: arrays.pop(LAMBDA),
        f"lacks the tensor '{LAMBDA}'",
    ),
    "no adapter": (
        lambda arrays: [
            arrays.pop(name) for name in list(arrays) if "model.fc" in name
        ],
        "adapts no module: it holds no 'randlora_lambda'",
    ),
    "unknown module": (
        move(LAMBDA.replace("lambda", "gamma"), "base_model.model.fc.7.randlora_gamma"),
        "lacks the tensor",
    ),
    "not finite": (
        lambda arrays: arrays[GAMMA].fill(np.nan),
        f"holds values that are not finite in '{GAMMA}'",
    ),
    "other width": (
        lambda arrays: arrays.update({GAMMA: np.zeros((2, 7), "float32")}),
        r"made for another model: module 'fc.0' has λ and γ of shapes \(3, 2\) and "
        r"\(2, 7\). Layer 'hidden_1', 6 by 10 and r=3, needs \(3, 2\) and \(2, 6\)",
    ),
    "one basis": (
        lambda arrays: arrays.pop("base_model.randlora_B"),
        r"must hold randlora_A of shape \(r, 1, s\) and randlora_B of shape \(l, n, r\)"
        r". It holds {'randlora_A': \(3, 1, 10\)}",
    ),
    "flat basis": (
        lambda arrays: arrays.update(
            {"base_model.randlora_A": np.zeros((3, 10), "float32")}
        ),
        r"It holds {.*'randlora_A': \(3, 10\)",
    ),
    "bases of another rank": (
        lambda arrays: arrays.update(
            {"base_model.randlora_A": np.zeros((4, 1, 10), "float32")}
        ),
        "too small for layer 'hidden_1'. It serves rank 4",
    ),
    "short bases": (
        lambda arrays: arrays.update(
            {"base_model.randlora_B": np.zeros((9, 4, 3), "float32")}
        ),
        "too small for layer 'hidden_1'. It serves rank 3, sides up to 9 and 10",
    ),
    "bias of another module": (
        lambda arrays: arrays.update(
            {"base_model.model.out.base_layer.bias": np.zeros(3, "float32")}
        ),
        "holds a bias of module 'out', which it does not adapt",
    ),
    "long bias": (
        lambda arrays: arrays.update(
            {"base_model.model.fc.0.base_layer.bias": np.zeros(3, "float32")}
        ),
        r"'fc.0.bias' has shape \(3,\). Layer 'hidden_1' needs \(10,\)",
    ),
    "bias of a folder without": (
        lambda arrays: arrays.update(
            {"base_model.model.fc.0.base_layer.bias": np.zeros(10, "float32")}
        ),
        "holds a tensor for 'hidden_1/bias' of the model, but says bias='none'",
    ),
    "half of a whole module": (
        lambda arrays: arrays.update(
            {"base_model.model.out.weight": np.zeros((3, 5), "float32")}
        ),
        "has no tensor for 'head/bias' of the model",
    ),
    "unknown whole module": (
        lambda arrays: arrays.update(
            {"base_model.model.score.weight": np.zeros((3, 5), "float32")}
        ),
        r"holds the whole weight 'score.weight' \(`modules_to_save`, .* Module 'score' "
        "has no layer",
    ),
    "whole module of another shape": (
        lambda arrays: arrays.update(
            {"base_model.model.out.weight": np.zeros((4, 5), "float32")}
        ),
        r"'out.weight' has shape \(4, 5\). Layer 'head' needs \(3, 5\)",
    ),
    "weight of an adapted module": (
        lambda arrays: arrays.update(
            {"base_model.model.fc.0.weight": np.zeros((10, 6), "float32")}
        ),
        "holds 'fc.0.weight', which has no place in layer 'hidden_1'",
    ),
}


@pytest.mark.parametrize("change, match", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_load_refuses_tensors_that_do_not_fit(tmp_path, change, match):
    folder = write(tmp_path / "bad", changed_arrays(change))
    name_map = {**MLP_NAMES, "head": "out"}
    assert_load_refused(models.mlp(), folder, match, name_map=name_map)


BAD_OPTIONS = {
    "another method": (
        {"peft_type": "LORA"},
        "holds an adapter of type LORA. `keras_randlora.peft` reads those of PEFT's "
        "RandLora",
    ),
    "no rank": ({"r": None}, "must give a positive integer `r`. It has r=None"),
    "all biases": (
        {"bias": "all"},
        "trained with bias='all', which also trains biases of modules that are not "
        "adapted",
    ),
    "no biases": (
        {"bias": "randlora_only"},
        "has no tensor for 'hidden_1/bias' of the model",
    ),
    "alpha": ({"randlora_alpha": math.nan}, "`alpha` must be finite"),
}


@pytest.mark.parametrize("options, match", BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_load_refuses_options(tmp_path, options, match):
    folder = mlp_folder(tmp_path, **options)
    assert_load_refused(models.mlp(), folder, match, name_map=MLP_NAMES)


def test_load_refuses_damaged_files(tmp_path):
    folder = mlp_folder(tmp_path)
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    match = "not a readable safetensors file .* truncated or damaged"
    assert_load_refused(models.mlp(), folder, match, name_map=MLP_NAMES)
    (folder / "adapter_config.json").write_text("{")
    assert_load_refused(models.mlp(), folder, "is not a PEFT configuration")


def test_load_refuses_missing_files(tmp_path):
    model, folder = models.mlp(), mlp_folder(tmp_path)
    missing = dict(error=FileNotFoundError)
    assert_load_refused(model, tmp_path / "no", "There is no PEFT adapter", **missing)
    (folder / WEIGHTS).unlink()
    assert_load_refused(model, folder, f"There is no file '.*{WEIGHTS}'.$", **missing)
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    match = "'adapter_model.bin' is a pickle: save with safe_serialization=True"
    assert_load_refused(model, folder, match, **missing)


def test_load_refuses_modules_without_a_layer(tmp_path):
    model = models.EXAMPLES["llama3"].build()
    modules = {"model.layers.0.self_attn.q_prj": (None, 16, 16)}
    folder = write(tmp_path / "adapter", peft_arrays(modules))
    match = (
        r"Module 'model.layers.0.self_attn.q_prj' has no layer in Llama3Backbone. Pass "
        r"name_map={'<layer path>': 'model.layers.0.self_attn.q_prj'}, with an entry "
        r"for each layer that the table lacks. Nearest module: "
        r"'model.layers.0.self_attn.q_proj'."
    )
    assert_load_refused(model, folder, match)


def test_load_refuses_a_model_without_a_table(tmp_path):
    match = r"'fc.0' has no layer in Functional. Pass name_map=.* tables of names for"
    assert_load_refused(models.mlp(), mlp_folder(tmp_path), match)


def test_load_refuses_fused_modules(tmp_path):
    modules = {"transformer.h.0.attn.c_attn": (None, 8, 24)}
    folder = write(tmp_path / "adapter", peft_arrays(modules))
    match = (
        "Module 'transformer.h.0.attn.c_attn' has no layer in GPT2Backbone. "
        "transformers keeps the layers 'query', 'key', 'value' in one matrix, 'c_attn'"
    )
    assert_load_refused(gpt2(), folder, match)


def test_load_refuses_an_adapted_model(tmp_path):
    model = models.mlp()
    kr.enable_randlora(model, rank=2, targets="hidden_1")
    match = "Model 'mlp' is already adapted by RandLoRA"
    assert_load_refused(model, mlp_folder(tmp_path), match, name_map=MLP_NAMES)


def test_load_refuses_what_is_no_keras_model(tmp_path):
    with pytest.raises(TypeError, match="adapts a `keras.Model`. Received: 'llama'"):
        kr.peft.load("llama", mlp_folder(tmp_path))


def test_load_refuses_one_layer_for_two_modules(tmp_path):
    modules = {f"{p}layers.0.self_attn.q_proj": (None, 16, 16) for p in ("", "model.")}
    folder = write(tmp_path / "adapter", peft_arrays(modules))
    model = models.EXAMPLES["llama3"].build()
    match = "are both 'transformer_layer_0/self_attention/query'"
    assert_load_refused(model, folder, match)


@pytest.mark.parametrize(
    "name_map, match",
    [
        ({"hidden": "fc.0"}, "names 'hidden', which is not a Dense or EinsumDense "),
        ({"hidden_1": "a", "hidden_2": "a"}, "'hidden_1' and 'hidden_2' are both 'a'"),
    ],
)
def test_load_refuses_a_wrong_name_map(tmp_path, name_map, match):
    assert_load_refused(models.mlp(), mlp_folder(tmp_path), match, name_map=name_map)


def test_without_saved_bases_torch_is_needed(tmp_path, monkeypatch):
    arrays = peft_arrays(MLP_MODULES)
    arrays = {name: a for name, a in arrays.items() if "fc" in name}
    folder = write(tmp_path / "adapter", arrays, save_projection=False)
    model = models.mlp()
    monkeypatch.setitem(sys.modules, "torch", None)
    match = (
        r"saved without its bases \(save_projection=False\). .* Install torch, or save "
        "the adapter with save_projection=True"
    )
    with pytest.raises(ModuleNotFoundError, match=match):
        kr.peft.load(model, folder, name_map=MLP_NAMES)


SAVE_REFUSALS = {
    "fewer bases": (
        dict(targets="hidden_1", num_bases=1),
        r"Layer 'hidden_1' has 1 bases \(num_bases=1\). PEFT always has 2",
    ),
    "all biases": (
        dict(targets="hidden_1", train_bias="all"),
        "train_bias='all' trains biases of layers that are not adapted",
    ),
    "no name": (
        dict(targets="head"),
        "'head' of Functional has no known module .* name_map={'head': '<module path>'",
    ),
}


@pytest.mark.parametrize("options, match", SAVE_REFUSALS.values(), ids=SAVE_REFUSALS)
def test_save_refuses_what_peft_has_no_place_for(tmp_path, options, match):
    model = models.mlp()
    kr.enable_randlora(model, rank=RANK, **options)
    with pytest.raises(ValueError, match=match):
        kr.peft.save(model, tmp_path / "adapter", name_map=MLP_NAMES)
    assert not list(tmp_path.iterdir())


def test_save_refuses_layers_that_are_not_linear(tmp_path):
    model = models.EXAMPLES["cnn"].build()
    kr.enable_randlora(model, rank=RANK, targets="dense", also_train="batch_norm")
    with pytest.raises(ValueError, match=r"'batch_norm' \(BatchNorm.*\) is not a lin"):
        kr.peft.save(model, tmp_path / "adapter", name_map={"dense": "fc"})


@pytest.mark.parametrize("target", ["conv", "per_head"])
def test_save_refuses_convolutions_and_batches(target, tmp_path):
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(4, 2, strides=2, name="conv")(inputs)
    x = keras.layers.Reshape((4, 4))(x)
    x = keras.layers.EinsumDense("bhd,hdo->bho", (4, 3), name="per_head")(x)
    model = keras.Model(inputs, x)
    kr.enable_randlora(model, rank=RANK, targets=target)
    message = f"names '{target}', which is not|layer '{target}' is a batch of 4"
    with pytest.raises(ValueError, match=message):
        kr.peft.save(model, tmp_path / "adapter", name_map={target: "net.0"})
    assert not (tmp_path / "adapter").exists()


def test_save_refuses_fused_layers(tmp_path):
    model = gpt2()
    kr.enable_randlora(model, rank=RANK, targets="query")
    with pytest.raises(ValueError, match="'query', 'key', 'value' in one matrix, 'c_a"):
        kr.peft.save(model, tmp_path / "adapter")


def test_save_refuses_a_plain_model(tmp_path):
    with pytest.raises(ValueError, match="'mlp' is not adapted by RandLoRA"):
        kr.peft.save(models.mlp(), tmp_path / "adapter", name_map=MLP_NAMES)


def test_save_refuses_values_that_are_not_finite(tmp_path):
    model = models.mlp()
    kr.enable_randlora(model, rank=RANK, targets="hidden_1")
    model.get_layer("hidden_1").randlora.gamma.assign(np.full((2, 6), np.inf))
    with pytest.raises(
        ValueError, match="'hidden_1/gamma' holds values that are not f"
    ):
        kr.peft.save(model, tmp_path / "adapter", name_map=MLP_NAMES)
    assert not list(tmp_path.iterdir())


# Bases that are given, in the package's own files


@pytest.fixture
def given(tmp_path):
    """Return a model that was loaded from a PEFT folder."""
    model = models.EXAMPLES["mlp"].build()
    kr.peft.load(model, mlp_folder(tmp_path), name_map=MLP_NAMES)
    return model


def outputs(model):
    return models.EXAMPLES["mlp"].outputs(model)


def test_adapter_file_holds_given_bases_once(tmp_path, given):
    kr.save_adapter(given, tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    assert tensors["basis_a"].shape == (RANK, 10)
    assert tensors["basis_b"].shape == (10, 12)
    assert sorted(set(tensors) - set(kr.get_adapter(given))) == ["basis_a", "basis_b"]
    other = models.EXAMPLES["mlp"].build()
    kr.load_adapter(other, tmp_path / "x.safetensors")
    assert np.array_equal(outputs(other), outputs(given))
    kr.peft.save(other, tmp_path / "again", name_map=MLP_NAMES)
    expected = load_file(tmp_path / "mlp" / WEIGHTS)
    assert_same_arrays(read(tmp_path / "again"), expected, ordered=False)


def test_adapter_file_loads_again_into_bases_in_half_precision(tmp_path, given):
    kr.save_adapter(given, tmp_path / "x.safetensors")
    with models.default_policy("bfloat16"):
        other = models.EXAMPLES["mlp"].build()
    kr.load_adapter(other, tmp_path / "x.safetensors")
    expected = outputs(other)
    models.randomize(other, scale=1.0, seed=5)
    kr.load_adapter(other, tmp_path / "x.safetensors")
    assert np.array_equal(outputs(other), expected)


def test_adapter_file_loads_again_into_the_same_bases_only(tmp_path, given):
    kr.save_adapter(given, tmp_path / "x.safetensors")
    expected = outputs(given)
    models.randomize(given, scale=1.0, seed=5)
    kr.load_adapter(given, tmp_path / "x.safetensors")
    assert np.array_equal(outputs(given), expected)
    other = models.EXAMPLES["mlp"].build()
    folder = write(tmp_path / "other", peft_arrays(MLP_MODULES, seed=1))
    kr.peft.load(other, folder, name_map=MLP_NAMES)
    before = models.structure_of(other)
    with pytest.raises(
        ValueError, match="trained with other bases .* 'basis_a' differ"
    ):
        kr.load_adapter(other, tmp_path / "x.safetensors")
    assert models.structure_of(other) == before


def test_adapter_file_without_its_given_bases_is_refused(tmp_path, given):
    path = tmp_path / "x.safetensors"
    kr.save_adapter(given, path)
    file = kr.files.read_adapter(path)
    write_adapter(file._replace(bases=None), path)
    with pytest.raises(ValueError, match="lacks its bases, the matrix 'basis_a'"):
        kr.load_adapter(models.mlp(), path)


def test_weights_file_holds_given_bases(tmp_path, given):
    given.save_weights(tmp_path / "x.weights.h5")
    other = models.EXAMPLES["mlp"].build()
    folder = write(tmp_path / "other", peft_arrays(MLP_MODULES, seed=1))
    kr.peft.load(other, folder, name_map=MLP_NAMES)
    assert not np.allclose(outputs(other), outputs(given))
    other.load_weights(tmp_path / "x.weights.h5")
    assert np.array_equal(outputs(other), outputs(given))


def test_weights_file_holds_given_bases_in_bfloat16(tmp_path):
    def model():
        inputs = keras.Input((6,))
        dense = keras.layers.Dense(10, name="hidden_1", dtype="bfloat16")
        return keras.Model(inputs, dense(inputs))

    names, modules = {"hidden_1": "fc.0"}, {"fc.0": MLP_MODULES["fc.0"]}
    first, second = model(), model()
    for seed, adapted in enumerate((first, second)):
        folder = write(tmp_path / str(seed), peft_arrays(modules, seed=seed))
        kr.peft.load(adapted, folder, name_map=names)
    first.save_weights(tmp_path / "x.weights.h5")
    second.load_weights(tmp_path / "x.weights.h5")
    kr.peft.save(second, tmp_path / "ours", name_map=names)
    pefts = load_file(tmp_path / "0" / WEIGHTS)
    for name, tensor in read(tmp_path / "ours").items():
        rounded = pefts[name].astype(ml_dtypes.bfloat16).astype("float32")
        expected = rounded if name.endswith(("_A", "_B")) else pefts[name]
        assert np.array_equal(tensor, expected), name


def test_saved_model_comes_back_with_given_bases(tmp_path, given):
    given.save(tmp_path / "x.keras")
    other = keras.saving.load_model(tmp_path / "x.keras")
    assert np.array_equal(outputs(other), outputs(given))
    banks = {id(other.get_layer(name).bank) for name in ("hidden_1", "hidden_2")}
    assert len(banks) == 1


def test_a_bank_without_its_file_is_not_taken_for_one(given):
    rebuilt = keras.models.clone_model(given)
    assert np.all(np.isnan(outputs(rebuilt)))


def test_weights_of_given_and_of_drawn_bases_are_kept_apart(tmp_path, given):
    given.save_weights(tmp_path / "x.weights.h5")
    seeded = models.mlp()
    kr.enable_randlora(seeded, rank=RANK, targets=["hidden_1", "hidden_2"], seed=4)
    match = "layer 'hidden_1' were trained with .*basis='given'.* has .*basis='uniform'"
    with pytest.raises(ValueError, match=match):
        seeded.load_weights(tmp_path / "x.weights.h5")
    seeded.save_weights(tmp_path / "seeded.weights.h5")
    match = "layer 'hidden_1' were trained with .*basis='uniform'.* has .*basis='given'"
    with pytest.raises(ValueError, match=match):
        given.load_weights(tmp_path / "seeded.weights.h5")


def test_merge_and_disable_work_with_given_bases(tmp_path, given):
    expected = outputs(given)
    plain = outputs(models.EXAMPLES["mlp"].build())
    with kr.merged(given):
        assert np.allclose(outputs(given), expected, atol=1e-5)
    assert np.array_equal(outputs(given), expected)
    kr.disable_randlora(given)
    assert np.array_equal(outputs(given), plain)


def test_given_bases_are_refused_without_bases():
    model = models.mlp()
    before = models.structure_of(model)
    match = "bases that come with a file, .* Received: basis='given' without bases"
    with pytest.raises(ValueError, match=match):
        kr.enable_randlora(model, rank=2, targets="hidden_1", basis="given")
    assert models.structure_of(model) == before
    with pytest.raises(ValueError, match=match):
        kr.RandLoRADense(3, rank=2, basis="given").build((None, 4))


@pytest.mark.parametrize(
    "options, match",
    [
        ({"basis_storage": "regenerated"}, "given cannot be drawn again"),
        ({"sparsity": 4}, "`sparsity` can be chosen only with basis='ternary'"),
    ],
)
def test_given_bases_have_no_other_options(options, match):
    with pytest.raises(ValueError, match=match):
        kr.RandLoRAConfig(basis="given", **options)


def test_bases_go_with_the_given_basis_only():
    model = models.mlp()
    bases = np.zeros((2, 6), "float32"), np.zeros((10, 6), "float32")
    config = kr.RandLoRAConfig(rank=2, targets="hidden_1")
    with pytest.raises(
        ValueError, match="with basis='given' only. Received: basis='un"
    ):
        kr.adapt.enable_with_config(model, config, bases=bases)
