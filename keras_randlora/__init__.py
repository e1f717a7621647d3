"""RandLoRA for Keras 3: full-rank fine-tuning from frozen random bases.

Importing the package adds `enable_randlora`, `disable_randlora`, `merge_randlora`,
`save_randlora`, `load_randlora` and `randlora_summary` to `keras.Model`.
"""

from keras_randlora import analysis, peft
from keras_randlora import methods as _methods
from keras_randlora.adapt import (
    LayerReport,
    Report,
    base_only,
    disable_randlora,
    enable_randlora,
    layout_map,
    merge_randlora,
    merged,
    rematerialize,
    summary,
)
from keras_randlora.bases import register_basis
from keras_randlora.callbacks import RandLoRACheckpoint, RandLoRALogger
from keras_randlora.config import RandLoRAConfig
from keras_randlora.data import instruction_data, instruction_prompt
from keras_randlora.export import export_merged
from keras_randlora.files import (
    adapter_metadata,
    get_adapter,
    load_adapter,
    load_optimizer,
    merge_adapters,
    save_adapter,
    save_optimizer,
    set_adapter,
    upload_adapter,
)
from keras_randlora.layers import (
    RandLoRADense,
    RandLoRAEinsumDense,
    RandLoRALayer,
    register_layer,
)
from keras_randlora.planning import Plan, plan, rank_for_budget, rank_like_lora
from keras_randlora.update import BasisBank

__version__ = "1.0.0"

__all__ = [
    "BasisBank",
    "LayerReport",
    "Plan",
    "RandLoRACheckpoint",
    "RandLoRAConfig",
    "RandLoRADense",
    "RandLoRAEinsumDense",
    "RandLoRALayer",
    "RandLoRALogger",
    "Report",
    "adapter_metadata",
    "analysis",
    "base_only",
    "disable_randlora",
    "enable_randlora",
    "export_merged",
    "get_adapter",
    "instruction_data",
    "instruction_prompt",
    "layout_map",
    "load_adapter",
    "load_optimizer",
    "merge_adapters",
    "merge_randlora",
    "merged",
    "peft",
    "plan",
    "rank_for_budget",
    "rank_like_lora",
    "register_basis",
    "register_layer",
    "rematerialize",
    "save_adapter",
    "save_optimizer",
    "set_adapter",
    "summary",
    "upload_adapter",
]

_methods.install()
