"""Names of keras-hub's linear layers in Hugging Face transformers.

A table maps the place of a layer in a keras-hub backbone to its module's path in
transformers; `{i}` is the index of the block. Read as a matrix `(inputs, outputs)`, the
kernel of each pair is the transposed weight in transformers, with the heads in the same
order (`keras_hub/src/utils/transformers/convert_*.py`), so λ, γ and the bases transfer
unchanged.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import keras

from keras_randlora.adapt import Site, backbone_of, sites
from keras_randlora.layers import is_linear

Table = Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """The names of one kind of backbone.

    Attributes:
        modules: Places in the backbone and their module paths.
        prefixes: Prefixes of these paths: first in the transformers model with a head,
            `""` in the bare one, then in models that embed it.
        heads: Places in the task around the backbone and their full module paths.
        earlier: Module paths in former versions of transformers; only read.
        fused: Modules with one matrix for several layers of keras-hub, and the places
            of these. One update cannot serve both.
        first_block: Number of the first block in keras-hub's names.
        conv1d: Whether the modules are transformers' `Conv1D`.
    """

    modules: Table
    prefixes: tuple[str, ...]
    heads: Table = dataclasses.field(default_factory=dict)
    earlier: Table = dataclasses.field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    first_block: int = 0
    conv1d: bool = False


_LLAMA = Family(
    modules={
        "transformer_layer_{i}/self_attention/query": "layers.{i}.self_attn.q_proj",
        "transformer_layer_{i}/self_attention/key": "layers.{i}.self_attn.k_proj",
        "transformer_layer_{i}/self_attention/value": "layers.{i}.self_attn.v_proj",
        "transformer_layer_{i}/self_attention/attention_output": (
            "layers.{i}.self_attn.o_proj"
        ),
        "transformer_layer_{i}/feedforward_gate_dense": "layers.{i}.mlp.gate_proj",
        "transformer_layer_{i}/feedforward_intermediate_dense": (
            "layers.{i}.mlp.up_proj"
        ),
        "transformer_layer_{i}/feedforward_output_dense": "layers.{i}.mlp.down_proj",
    },
    prefixes=("model.", ""),
)

_SMOLLM3 = Family(
    modules={
        "transformer_layer_{i}/self_attn/q_proj": "layers.{i}.self_attn.q_proj",
        "transformer_layer_{i}/self_attn/k_proj": "layers.{i}.self_attn.k_proj",
        "transformer_layer_{i}/self_attn/v_proj": "layers.{i}.self_attn.v_proj",
        "transformer_layer_{i}/self_attn/o_proj": "layers.{i}.self_attn.o_proj",
        "transformer_layer_{i}/mlp/gate_proj": "layers.{i}.mlp.gate_proj",
        "transformer_layer_{i}/mlp/up_proj": "layers.{i}.mlp.up_proj",
        "transformer_layer_{i}/mlp/down_proj": "layers.{i}.mlp.down_proj",
    },
    prefixes=("model.", ""),
)

_PHI3 = Family(
    modules={
        "transformer_layer_{i}/attention/attention_output": (
            "layers.{i}.self_attn.o_proj"
        ),
        "transformer_layer_{i}/feedforward_output_dense": "layers.{i}.mlp.down_proj",
    },
    prefixes=("model.", ""),
    fused={
        "layers.{i}.self_attn.qkv_proj": (
            "transformer_layer_{i}/attention/query",
            "transformer_layer_{i}/attention/key",
            "transformer_layer_{i}/attention/value",
        ),
        "layers.{i}.mlp.gate_up_proj": (
            "transformer_layer_{i}/feedforward_gate_dense",
            "transformer_layer_{i}/feedforward_intermediate_dense",
        ),
    },
)

_GEMMA = Family(
    modules={
        "decoder_block_{i}/attention/query": "layers.{i}.self_attn.q_proj",
        "decoder_block_{i}/attention/key": "layers.{i}.self_attn.k_proj",
        "decoder_block_{i}/attention/value": "layers.{i}.self_attn.v_proj",
        "decoder_block_{i}/attention/attention_output": "layers.{i}.self_attn.o_proj",
        "decoder_block_{i}/ffw_gating": "layers.{i}.mlp.gate_proj",
        "decoder_block_{i}/ffw_gating_2": "layers.{i}.mlp.up_proj",
        "decoder_block_{i}/ffw_linear": "layers.{i}.mlp.down_proj",
    },
    prefixes=("model.", ""),
)

_GEMMA3 = dataclasses.replace(
    _GEMMA,
    prefixes=(
        "model.",
        "",
        "model.language_model.",
        "language_model.model.",
        "language_model.",
    ),
)

_GPT2 = Family(
    modules={
        "transformer_layer_{i}/self_attention/attention_output": "h.{i}.attn.c_proj",
        "transformer_layer_{i}/feedforward_intermediate_dense": "h.{i}.mlp.c_fc",
        "transformer_layer_{i}/feedforward_output_dense": "h.{i}.mlp.c_proj",
    },
    prefixes=("transformer.", ""),
    fused={
        "h.{i}.attn.c_attn": (
            "transformer_layer_{i}/self_attention/query",
            "transformer_layer_{i}/self_attention/key",
            "transformer_layer_{i}/self_attention/value",
        )
    },
    conv1d=True,
)

_BERT_BLOCKS = {
    "transformer_layer_{i}/self_attention_layer/query": (
        "encoder.layer.{i}.attention.self.query"
    ),
    "transformer_layer_{i}/self_attention_layer/key": (
        "encoder.layer.{i}.attention.self.key"
    ),
    "transformer_layer_{i}/self_attention_layer/value": (
        "encoder.layer.{i}.attention.self.value"
    ),
    "transformer_layer_{i}/self_attention_layer/attention_output": (
        "encoder.layer.{i}.attention.output.dense"
    ),
    "transformer_layer_{i}/feedforward_intermediate_dense": (
        "encoder.layer.{i}.intermediate.dense"
    ),
    "transformer_layer_{i}/feedforward_output_dense": "encoder.layer.{i}.output.dense",
}

_BERT = Family(
    modules={**_BERT_BLOCKS, "pooled_dense": "pooler.dense"},
    prefixes=("bert.", ""),
    heads={"logits": "classifier"},
)

_ROBERTA = Family(
    modules=_BERT_BLOCKS,
    prefixes=("roberta.", ""),
    heads={"pooled_dense": "classifier.dense", "logits": "classifier.out_proj"},
)

_DISTILBERT = Family(
    modules={
        "transformer_layer_{i}/self_attention_layer/query": (
            "transformer.layer.{i}.attention.q_lin"
        ),
        "transformer_layer_{i}/self_attention_layer/key": (
            "transformer.layer.{i}.attention.k_lin"
        ),
        "transformer_layer_{i}/self_attention_layer/value": (
            "transformer.layer.{i}.attention.v_lin"
        ),
        "transformer_layer_{i}/self_attention_layer/attention_output": (
            "transformer.layer.{i}.attention.out_lin"
        ),
        "transformer_layer_{i}/feedforward_intermediate_dense": (
            "transformer.layer.{i}.ffn.lin1"
        ),
        "transformer_layer_{i}/feedforward_output_dense": (
            "transformer.layer.{i}.ffn.lin2"
        ),
    },
    prefixes=("distilbert.", ""),
    heads={"pooled_dense": "pre_classifier", "logits": "classifier"},
)

_VIT = Family(
    modules={
        "vit_encoder/transformer_block_{i}/mha/query": "layers.{i}.attention.q_proj",
        "vit_encoder/transformer_block_{i}/mha/key": "layers.{i}.attention.k_proj",
        "vit_encoder/transformer_block_{i}/mha/value": "layers.{i}.attention.v_proj",
        "vit_encoder/transformer_block_{i}/mha/attention_output": (
            "layers.{i}.attention.o_proj"
        ),
        "vit_encoder/transformer_block_{i}/mlp/dense_1": "layers.{i}.mlp.fc1",
        "vit_encoder/transformer_block_{i}/mlp/dense_2": "layers.{i}.mlp.fc2",
    },
    prefixes=("vit.", ""),
    heads={"predictions": "classifier"},
    earlier={
        "vit_encoder/transformer_block_{i}/mha/query": (
            "encoder.layer.{i}.attention.attention.query"
        ),
        "vit_encoder/transformer_block_{i}/mha/key": (
            "encoder.layer.{i}.attention.attention.key"
        ),
        "vit_encoder/transformer_block_{i}/mha/value": (
            "encoder.layer.{i}.attention.attention.value"
        ),
        "vit_encoder/transformer_block_{i}/mha/attention_output": (
            "encoder.layer.{i}.attention.output.dense"
        ),
        "vit_encoder/transformer_block_{i}/mlp/dense_1": (
            "encoder.layer.{i}.intermediate.dense"
        ),
        "vit_encoder/transformer_block_{i}/mlp/dense_2": (
            "encoder.layer.{i}.output.dense"
        ),
    },
    first_block=1,
)

FAMILIES: dict[str, Family] = {
    "LlamaBackbone": _LLAMA,
    "Llama3Backbone": _LLAMA,
    "MistralBackbone": _LLAMA,
    "QwenBackbone": _LLAMA,
    "Qwen3Backbone": _LLAMA,
    "SmolLM3Backbone": _SMOLLM3,
    "Phi3Backbone": _PHI3,
    "GemmaBackbone": _GEMMA,
    "Gemma3Backbone": _GEMMA3,
    "GPT2Backbone": _GPT2,
    "BertBackbone": _BERT,
    "RobertaBackbone": _ROBERTA,
    "DistilBertBackbone": _DISTILBERT,
    "ViTBackbone": _VIT,
}


class ModuleNames:
    """The linear layers of one model and the paths of their modules.

    Args:
        model: A keras-hub backbone or task, or any model with a full `name_map`.
        name_map: Module paths by layer path; they override the tables.
        prefix: Prefix of the backbone's module paths in the result. Default: that of
            the transformers model with a head for a task, none for a backbone.

    Raises:
        ValueError: `name_map` names a layer that the model does not have or that is not
            linear, or maps two layers to one module.
    """

    def __init__(
        self,
        model: keras.Model,
        name_map: Mapping[str, str] | None = None,
        prefix: str | None = None,
    ) -> None:
        backbone = backbone_of(model)
        self.kind = type(backbone).__name__
        self.family = FAMILIES.get(self.kind)
        self._sites = [site for site in sites(model) if _is_module(site.layer)]
        self._explicit = _checked_map(name_map or {}, self._sites)
        self._prefixes = _prefix_order(self.family, prefix, task=backbone is not model)
        explicit_last = sorted(self._sites, key=lambda s: s.path in self._explicit)
        self._by_module = {
            name: site for site in explicit_last for name in self._names(site)
        }

    @property
    def conv1d(self) -> bool:
        """Whether the modules are transformers' `Conv1D`."""
        return self.family is not None and self.family.conv1d

    def sites(self, modules: Iterable[str]) -> dict[str, Site]:
        """Return the layers of these modules, by module, in the model's order.

        Raises:
            ValueError: A module has no layer, or two modules have the same layer.
        """
        found = {module: self.site(module) for module in modules}
        order = {site.path: index for index, site in enumerate(self._sites)}
        found = dict(sorted(found.items(), key=lambda item: order[item[1].path]))
        _require_distinct({module: site.path for module, site in found.items()})
        return found

    def modules(self, chosen: Sequence[Site]) -> dict[str, Site]:
        """Return these layers by their modules.

        Raises:
            ValueError: A layer has no module or is not linear, or two share a module.
        """
        modules = {site.path: self.module(site) for site in chosen}
        _require_distinct(modules)
        return {modules[site.path]: site for site in chosen}

    def site(self, module: str) -> Site:
        """Return the layer of a module.

        Raises:
            ValueError: The model has none.
        """
        if module not in self._by_module:
            raise ValueError(
                f"Module '{module}' has no layer in {self.kind}. "
                + (self._fusion_of_module(module) or self._remedy(module))
            )
        return self._by_module[module]

    def module(self, site: Site) -> str:
        """Return the module of a layer.

        Raises:
            ValueError: There is none, or the layer is not linear.
        """
        if not _is_module(site.layer):
            raise ValueError(
                f"'{site.path}' ({type(site.layer).__name__}) is not a linear module: "
                "a folder of PEFT's RandLora has no place for it. Leave it out of "
                "`targets` and `also_train`, or use `save_adapter`."
            )
        names = list(self._names(site))
        if not names:
            raise ValueError(
                f"Layer '{site.path}' of {self.kind} has no known module in "
                "transformers. "
                + (self._fusion_of_layer(site) or self._remedy("<module path>", site))
            )
        return names[0]

    def _names(self, site: Site) -> Iterator[str]:
        """Yield the module paths of a layer, first the one to write."""
        if site.path in self._explicit:
            yield self._explicit[site.path]
            return
        if self.family is None:
            return
        place, family = _place(site), self.family
        for table in (family.modules, family.earlier):
            for name in _translations(place, table, family.first_block):
                yield from (f"{prefix}{name}" for prefix in self._prefixes)
        yield from _translations(place, family.heads, family.first_block)

    def _fusion_of_module(self, module: str) -> str | None:
        for template, places in self._fused():
            for prefix in self._prefixes:
                if _match(prefix + template, module) is not None:
                    return _fusion_message(template, places)
        return None

    def _fusion_of_layer(self, site: Site) -> str | None:
        for template, places in self._fused():
            if any(_match(place, _place(site)) is not None for place in places):
                return _fusion_message(template, places)
        return None

    def _fused(self) -> list[tuple[str, tuple[str, ...]]]:
        return list(self.family.fused.items()) if self.family else []

    def _remedy(self, module: str, site: Site | None = None) -> str:
        path = site.path if site else "<layer path>"
        hint = f"Pass name_map={{'{path}': '{module}'}}, with an entry for each layer"
        if self.family is None:
            return f"{hint}; there are tables of names for {sorted(FAMILIES)}."
        near = [] if site else difflib.get_close_matches(module, self._by_module, n=1)
        nearest = f" Nearest module: '{near[0]}'." if near else ""
        return f"{hint} that the table lacks.{nearest}"


def _is_module(layer: keras.layers.Layer) -> bool:
    """Return whether transformers has a linear module for a layer."""
    kinds = keras.layers.Dense, keras.layers.EinsumDense
    return isinstance(layer, kinds) and is_linear(layer)


def _require_distinct(partners: Mapping[str, str]) -> None:
    owners: dict[str, str] = {}
    for name, partner in partners.items():
        if partner in owners:
            raise ValueError(
                f"'{owners[partner]}' and '{name}' are both '{partner}'. Give each a "
                "partner of its own in `name_map`."
            )
        owners[partner] = name


def _checked_map(name_map: Mapping[str, str], linear: list[Site]) -> dict[str, str]:
    paths = [site.path for site in linear]
    for path in name_map:
        if path not in paths:
            near = difflib.get_close_matches(path, paths, n=1)
            hint = f" Nearest: '{near[0]}'." if near else ""
            raise ValueError(
                f"`name_map` names '{path}', which is not a Dense or EinsumDense layer "
                f"of the model.{hint}"
            )
    _require_distinct(name_map)
    return dict(name_map)


def _prefix_order(
    family: Family | None, prefix: str | None, *, task: bool
) -> tuple[str, ...]:
    """Return the prefixes, first the one to write."""
    known = family.prefixes if family else ()
    if prefix is None and known:
        prefix = known[0] if task else ""
    return tuple(dict.fromkeys([*([] if prefix is None else [prefix]), *known]))


def _place(site: Site) -> str:
    """Return the names of the layers that hold this one, without models, and its."""
    holders = (h.name for h in site.ancestors if not isinstance(h, keras.Model))
    place = "/".join([*holders, site.name])
    return place.replace("/tranformer_block_", "/transformer_block_")  # ViT before 0.30


def _translations(place: str, table: Table, first_block: int) -> Iterator[str]:
    for template, name in table.items():
        index = _match(template, place)
        if index is not None:
            yield name.format(i=int(index or 0) - first_block)


def _match(template: str, name: str) -> str | None:
    """Return the value of `{i}` in `name`, `""` without `{i}`, `None` if no match."""
    before, _, after = template.partition("{i}")
    number = r"(\d+)" if "{i}" in template else "()"
    match = re.fullmatch(re.escape(before) + number + re.escape(after), name)
    return match.group(1) if match else None


def _fusion_message(template: str, places: tuple[str, ...]) -> str:
    layers = ", ".join(f"'{place.rsplit('/', 1)[-1]}'" for place in places)
    return (
        f"transformers keeps the layers {layers} in one matrix, "
        f"'{template.rsplit('.', 1)[-1]}', and one update of that matrix is not an "
        "update of each layer. Leave them out of the targets."
    )
