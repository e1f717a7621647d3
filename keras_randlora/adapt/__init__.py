"""What happens to a live model: enable, disable, merge, and the guards around it.

In: a model and a `RandLoRAConfig`. Out: the model adapted in place, and a `Report`.
"""

from keras_randlora.adapt.compiled import (
    models_holding,
    renew_optimizer,
)
from keras_randlora.adapt.diagnostics import (
    warn_of_unsaved,
    warn_of_zero_update,
)
from keras_randlora.adapt.distribution import (
    layout_map,
)
from keras_randlora.adapt.hub_repairs import (
    backbone_of,
    complete_config,
)
from keras_randlora.adapt.rematerialize import (
    rematerialize,
)
from keras_randlora.adapt.report import (
    LayerReport,
    Report,
    summary,
)
from keras_randlora.adapt.targets import (
    Selection,
    Site,
    select,
    select_paths,
    sites,
)
from keras_randlora.adapt.verbs import (
    AdaptedState,
    Bases,
    TrainableFlag,
    adapted_state,
    adapter_shapes,
    base_only,
    disable_randlora,
    enable_randlora,
    enable_with_config,
    given_bases,
    is_adapted,
    merge_randlora,
    merged,
    require_plain,
    set_trainable,
    update_shapes,
)

__all__ = [
    "AdaptedState",
    "Bases",
    "LayerReport",
    "Report",
    "Selection",
    "Site",
    "TrainableFlag",
    "adapted_state",
    "adapter_shapes",
    "backbone_of",
    "base_only",
    "complete_config",
    "disable_randlora",
    "enable_randlora",
    "enable_with_config",
    "given_bases",
    "is_adapted",
    "layout_map",
    "merge_randlora",
    "merged",
    "models_holding",
    "rematerialize",
    "renew_optimizer",
    "require_plain",
    "select",
    "select_paths",
    "set_trainable",
    "sites",
    "summary",
    "update_shapes",
    "warn_of_unsaved",
    "warn_of_zero_update",
]
