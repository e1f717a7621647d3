"""Options: defaults, what is accepted in which form, JSON, and every refusal."""

import dataclasses
import json
import re

import numpy as np
import pytest

from keras_randlora import RandLoRAConfig

pytestmark = pytest.mark.any_backend


def test_defaults():
    assert dataclasses.asdict(RandLoRAConfig()) == {
        "rank": 32,
        "targets": None,
        "alpha": 640.0,
        "basis": "uniform",
        "sparsity": None,
        "seed": 0,
        "num_bases": None,
        "dropout": 0.0,
        "exclude": (),
        "layers": None,
        "train_bias": "none",
        "also_train": (),
        "basis_storage": "stored",
        "compute": "auto",
        "shared_in_batch": "none",
        "weight_axes": (),
    }


def test_alpha_follows_the_rank():
    assert RandLoRAConfig(rank=6).alpha == 120.0
    assert RandLoRAConfig(rank=6, alpha=12).alpha == 12.0


@pytest.mark.parametrize(
    "option, given, kept",
    [
        ("rank", np.int64(8), 8),
        ("alpha", np.float32(2.5), 2.5),
        ("seed", np.int32(7), 7),
        ("seed", 2**32 - 1, 2**32 - 1),
        ("num_bases", np.int16(3), 3),
        ("dropout", 0, 0.0),
        ("targets", "query", ("query",)),
        ("targets", ["query", "value"], ("query", "value")),
        ("targets", re.compile(".*query"), ("re:.*query",)),
        ("targets", [re.compile("(?i)Query")], ("re:(?i)Query",)),
        ("exclude", "head", ("head",)),
        ("exclude", None, ()),
        ("also_train", ["head"], ("head",)),
        ("also_train", None, ()),
        ("layers", 2, (2,)),
        ("layers", range(2), (0, 1)),
        ("layers", np.array([1, 3]), (1, 3)),
    ],
)
def test_equivalent_forms_are_kept_as_one(option, given, kept):
    value = getattr(RandLoRAConfig(**{option: given}), option)
    assert value == kept
    assert type(value) is type(kept)


def test_is_a_value():
    config = RandLoRAConfig(rank=4, targets=["query"])
    assert config == RandLoRAConfig(rank=4, targets=("query",))
    assert hash(config) == hash(RandLoRAConfig(rank=4, targets=("query",)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.rank = 8


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(rank=3, targets=["re:.*(query|key)"], exclude="*/1/*", layers=[0, 2]),
        dict(basis="ternary", sparsity=np.float32(100), seed=np.uint32(5)),
        dict(num_bases=2, dropout=0.05, alpha=1, train_bias="all"),
        dict(also_train="head", basis_storage="regenerated", compute="factored"),
    ],
    ids=str,
)
def test_json_round_trip(options):
    config = RandLoRAConfig(**options)
    assert RandLoRAConfig.from_json(config.to_json()) == config


def test_json_text():
    fields = json.loads(RandLoRAConfig(rank=2, targets="query", layers=[1]).to_json())
    assert list(fields) == sorted(fields)
    assert fields["targets"] == ["query"]
    assert fields["layers"] == [1]
    assert fields["alpha"] == 40.0


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "must be a JSON object. Received: list"),
        (
            '{"rank": 2, "ranc": 3}',
            r"Unknown RandLoRA options \['ranc'\]. This version",
        ),
        ('{"rank": 0}', "Received: rank=0"),
        ("{", "Expecting property name"),
    ],
)
def test_from_json_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        RandLoRAConfig.from_json(text)


POSITIVE = "must be a positive integer. Received: "
OUT_OF_RANGE = {
    "rank zero": (dict(rank=0), f"`rank` {POSITIVE}rank=0."),
    "rank negative": (dict(rank=-4), f"`rank` {POSITIVE}rank=-4."),
    "no bases": (dict(num_bases=0), f"`num_bases` {POSITIVE}num_bases=0."),
    "alpha nan": (dict(alpha=float("nan")), "`alpha` must be finite. Received: alpha"),
    "alpha inf": (dict(alpha=float("inf")), "`alpha` must be finite. Received: alpha"),
    "seed": (dict(seed=-1), "`seed` must be an integer in [0, 2**32). Received: "),
    "seed too large": (dict(seed=2**32), "Received: seed=4294967296."),
    "dropout": (dict(dropout=1), "`dropout` must be in [0, 1). Received: dropout=1.0."),
    "dropout negative": (dict(dropout=-0.1), "Received: dropout=-0.1."),
    "dropout nan": (dict(dropout=float("nan")), "`dropout` must be finite."),
    "basis": (dict(basis="gauss"), "`basis` must be one of ['uniform', 'normal', "),
    "no sparsity": (dict(basis="ternary"), "`sparsity` must be given with basis="),
    "sparsity": (
        dict(basis="ternary", sparsity=1.5),
        "`sparsity` must be from 2 to 2**31. Received: sparsity=1.5.",
    ),
    "sparsity of another basis": (
        dict(basis="uniform", sparsity=6),
        "`sparsity` can be chosen only with basis='ternary'.",
    ),
    "train_bias": (
        dict(train_bias="some"),
        "`train_bias` must be one of ['none', 'adapted', 'all']. Received: "
        "train_bias='some'.",
    ),
    "train_bias bool": (dict(train_bias=True), "Received: train_bias=True."),
    "basis_storage": (
        dict(basis_storage="disk"),
        "`basis_storage` must be one of ['stored', 'regenerated']. Received: "
        "basis_storage='disk'.",
    ),
    "compute": (
        dict(compute="fast"),
        "`compute` must be one of ['auto', 'materialized', 'factored']. Received: "
        "compute='fast'.",
    ),
    "no targets": (dict(targets=[]), "`targets` must name at least one layer, or be"),
    "regular expression": (
        dict(targets=["re:(query"]),
        "`targets` holds an invalid regular expression 're:(query': missing ), ",
    ),
    "compiled flags": (
        dict(targets=re.compile("query", re.IGNORECASE)),
        "`targets` holds an expression compiled with flags. Write them in the "
        "expression, for instance 're:(?i)query'. Received: re.compile('query', ",
    ),
    "no blocks": (dict(layers=[]), "`layers` must hold at least one block index, or"),
    "block index": (dict(layers=[0, -1]), "at least 0. Received: -1."),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_out_of_range(name):
    options, message = OUT_OF_RANGE[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        RandLoRAConfig(**options)


WRONG_TYPE = {
    "rank float": (dict(rank=8.0), f"`rank` {POSITIVE}rank=8.0 (of type float)."),
    "rank bool": (dict(rank=True), f"`rank` {POSITIVE}rank=True (of type bool)."),
    "rank text": (dict(rank="8"), f"`rank` {POSITIVE}rank='8' (of type str)."),
    "num_bases": (dict(num_bases=2.5), "num_bases=2.5 (of type float)."),
    "alpha": (dict(alpha="2r"), "`alpha` must be a number. Received: alpha='2r' (of"),
    "seed": (dict(seed=1.0), "`seed` must be an integer in [0, 2**32). Received: "),
    "seed none": (dict(seed=None), "seed=None (of type NoneType)."),
    "dropout": (dict(dropout=None), "`dropout` must be a number. Received: dropout="),
    "sparsity": (
        dict(basis="ternary", sparsity="6"),
        "`sparsity` must be a number. Received: sparsity='6' (of type str).",
    ),
    "targets number": (
        dict(targets=3),
        "`targets` must be a string or a list of strings. Received: targets=3 (of",
    ),
    "targets set": (dict(targets={"query"}), "(of type set)."),
    "targets of numbers": (
        dict(targets=["query", 3]),
        "`targets` must hold non-empty strings. Received: 3 (of type int).",
    ),
    "empty target": (dict(targets=[""]), "non-empty strings. Received: '' (of type"),
    "bytes": (dict(targets=b"query"), "`targets` must hold non-empty strings."),
    "exclude": (dict(exclude=[None]), "`exclude` must hold non-empty strings."),
    "also_train": (dict(also_train=5), "`also_train` must be a string or a list"),
    "layers text": (
        dict(layers="0"),
        "`layers` must be block indices such as [0, 1]. Received: layers='0'.",
    ),
    "layers float": (
        dict(layers=[0.0]),
        "`layers` must hold integers (block indices). Received: 0.0 (of type float).",
    ),
    "layers bool": (dict(layers=True), "block indices such as [0, 1]. Received: "),
}


@pytest.mark.parametrize("name", WRONG_TYPE)
def test_wrong_type(name):
    options, message = WRONG_TYPE[name]
    with pytest.raises(TypeError, match=re.escape(message)):
        RandLoRAConfig(**options)


def test_options_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        RandLoRAConfig(8)
