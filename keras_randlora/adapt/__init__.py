"""Adaptation of a live model: enable, disable, merge, and guards in between.

In: a model and a `RandLoRAConfig`. Out: the model adapted in place, and a `Report`.
The layers of a model tell whether it is adapted (`adapted_state`).
"""

from keras_randlora.adapt.compiled import (
    follow_values,
    models_holding,
    renew_optimizers,
)
from keras_randlora.adapt.coverage import multiplied
from keras_randlora.adapt.diagnostics import (
    warn_of_unsaved,
    warn_of_zero_update,
)
from keras_randlora.adapt.distribution import (
    layout_map,
)
from keras_randlora.adapt.enable import (
    disable_randlora,
    enable_randlora,
    enable_with_config,
)
from keras_randlora.adapt.guards import before_training, install_guards
from keras_randlora.adapt.hub_repairs import (
    accept_tokens,
    backbone_of,
    complete_config,
)
from keras_randlora.adapt.merge import (
    merge_randlora,
    merged,
)
from keras_randlora.adapt.rematerialize import (
    rematerialize,
)
from keras_randlora.adapt.report import (
    LayerReport,
    Report,
    summary,
)
from keras_randlora.adapt.sites import Site, sites
from keras_randlora.adapt.state import (
    AdaptedState,
    Bases,
    adapted_state,
    given_bases,
    is_adapted,
    require_plain,
)
from keras_randlora.adapt.switch import (
    base_only,
)
from keras_randlora.adapt.targets import (
    Selection,
    select,
    select_addresses,
)
from keras_randlora.adapt.trainable import (
    TrainableFlag,
    adapter_shapes,
    restore_flags,
    update_shapes,
)
from keras_randlora.adapt.weights import all_sites

__all__ = [
    "AdaptedState",
    "Bases",
    "LayerReport",
    "Report",
    "Selection",
    "Site",
    "TrainableFlag",
    "accept_tokens",
    "adapted_state",
    "adapter_shapes",
    "all_sites",
    "backbone_of",
    "base_only",
    "before_training",
    "complete_config",
    "disable_randlora",
    "enable_randlora",
    "enable_with_config",
    "follow_values",
    "given_bases",
    "install_guards",
    "is_adapted",
    "layout_map",
    "merge_randlora",
    "merged",
    "models_holding",
    "multiplied",
    "rematerialize",
    "renew_optimizers",
    "require_plain",
    "restore_flags",
    "select",
    "select_addresses",
    "sites",
    "summary",
    "update_shapes",
    "warn_of_unsaved",
    "warn_of_zero_update",
]
