"""What we rely on beyond the promises of Keras, and in which versions of Keras.

Importing the package checks what concerns the installed Keras and the backend in use. A
class has a name if it defines it or if the code of its methods uses it, since most are
attributes of instances that are built. No layer, variable or device is created.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from types import CodeType
from typing import Any, NamedTuple

import keras

Version = tuple[int, int]


class Reliance(NamedTuple):
    """Names of one object that no documentation promises.

    Attributes:
        owner: Full name of a class or module.
        names: Separated by spaces.
        purpose: What the names are relied on for.
        since: First version of Keras that has them and needs them, if not every one.
        until: First version of Keras without them.
        backend: The only backend that has them.
    """

    owner: str
    names: str
    purpose: str
    since: Version = (3, 12)
    until: Version = (4, 0)
    backend: str | None = None


_LAYER = "keras.layers.Layer"
_DENSE, _EINSUM = "keras.layers.Dense", "keras.layers.EinsumDense"
_OPTIMIZER = "keras.optimizers.Optimizer"
_COMMON = "keras.src.backend.common"
_QUANTIZERS = "keras.src.quantizers"

# In the sources of Keras 3.12.0, 3.13.2, 3.14.1, 3.15.0, 3.15.1, 3.16.0.dev2026102704.
RELIANCES = (
    Reliance(_LAYER, "_trainable", "a layer's own flag"),
    Reliance(
        _LAYER, "_trainable_variables _non_trainable_variables", "a layer's own weights"
    ),
    Reliance(_LAYER, "_layers _flatten_layers", "children, and all layers below"),
    Reliance(_LAYER, "_tracker", "state of what is built already"),
    Reliance(_LAYER, "_parent_path _open_name_scope", "paths of weights added later"),
    Reliance(_LAYER, "_check_quantize_args", "asked before a layer is quantized"),
    Reliance(_LAYER, "_remat_mode rematerialized_call", "rematerialized calls"),
    Reliance(_LAYER, "_loss_ids", "losses of a call that is repeated"),
    Reliance(_LAYER, "_track_variables", "`nn.Module` parameters", backend="torch"),
    Reliance(_DENSE, "_kernel", "the variable behind `kernel`"),
    Reliance(_EINSUM, "_kernel", "the variable behind `kernel`"),
    Reliance("keras.layers.Embedding", "_embeddings", "counting parameters"),
    Reliance("keras.layers.MultiHeadAttention", "_num_heads", "the memory of a step"),
    # Quantized kernels
    Reliance(_DENSE, "_is_quantized", "quantizing again"),
    Reliance(_EINSUM, "_is_quantized", "quantizing again"),
    Reliance(
        _EINSUM,
        "_adjust_scale_for_dequant _kernel_squeeze_axes _kernel_expand_axes "
        "_kernel_transpose_axes",
        "the axes of a scale per output",
    ),
    Reliance(_DENSE, "_orig_input_dim", "how int4 is packed", until=(3, 16)),
    Reliance(
        _EINSUM,
        "_int4_pack_axis _orig_length_along_pack_axis",
        "how int4 is packed: along the first input axis",
        until=(3, 14),
    ),
    Reliance(
        _DENSE,
        "_orig_output_dim _int4_block_size",
        "how int4 is packed: along the columns, in blocks of rows",
        since=(3, 14),
        until=(3, 16),
    ),
    Reliance(
        _EINSUM,
        "original_kernel_shape _int4_unpacked_column_size _int4_block_size",
        "how int4 is packed: along the columns, in blocks of rows",
        since=(3, 14),
        until=(3, 16),
    ),
    Reliance(
        _EINSUM,
        "quantization_axis",
        "input axes with one scale of the rounding",
        since=(3, 13),
        until=(3, 16),
    ),
    Reliance(
        _LAYER,
        "_quantization_geometry _quantized_weight",
        "the shape of a quantized kernel, and how it is packed",
        since=(3, 16),
    ),
    Reliance(
        f"{_QUANTIZERS}.geometry.EinsumProjectionGeometry",
        "weight_shape inputs_quantization_axis",
        "the shape of a kernel; input axes with one scale of the rounding",
        since=(3, 16),
    ),
    Reliance(
        f"{_QUANTIZERS}.quantized_weight.QuantizedWeight",
        "layout scheme",
        "how int4 is packed, and in which blocks",
        since=(3, 16),
    ),
    Reliance(
        f"{_QUANTIZERS}.quantized_weight.Int4Pairs",
        "axis orig_len",
        "the axis with two entries a byte, and its length",
        since=(3, 16),
    ),
    Reliance(
        f"{_QUANTIZERS}.quantized_weight.WeightScheme",
        "group_size",
        "rows of a block",
        since=(3, 16),
    ),
    # Variables, gradients
    Reliance("keras.Variable", "_autocast", "conversion on reading"),
    Reliance("keras.Variable", "_layout", "sharding", backend="jax"),
    Reliance("keras.Variable", "_value", "an array that spans hosts", backend="jax"),
    Reliance(
        "jax._src.distributed",
        "global_state",
        "agreements between processes",
        backend="jax",
    ),
    Reliance(
        "jax._src.distributed.State",
        "client",
        "agreements between processes",
        backend="jax",
    ),
    Reliance("keras.distribution.ModelParallel", "_layout_map", "where experts lie"),
    Reliance(
        "keras.Model",
        "_distribute_strategy",
        "the strategy a model was built under",
        backend="tensorflow",
    ),
    Reliance(
        "tensorflow.python.framework.ops.gradient_registry",
        "_registry",
        "gradients that hold no graph",
        backend="tensorflow",
    ),
    Reliance("torch.Tensor", "_version", "writes to a tensor", backend="torch"),
    Reliance(
        "torch.autograd.forward_ad",
        "_current_level",
        "whether forward mode is on",
        backend="torch",
    ),
    Reliance(
        "torch._C",
        "_are_functorch_transforms_active",
        "whether `torch.func` is at work",
        backend="torch",
    ),
    Reliance(
        "torch._C",
        "_jit_is_onnx_log_enabled _jit_set_onnx_log_enabled",
        "a quiet ONNX tracer",
        backend="torch",
    ),
    # Optimizers
    Reliance(
        _OPTIMIZER,
        "_tracker _variables _iterations _learning_rate _trainable_variables "
        "_trainable_variables_indices",
        "forgetting its state",
    ),
    Reliance(
        _OPTIMIZER,
        "_model_variables_moving_average _accumulated_gradients",
        "what follows an adapter that is loaded",
    ),
    Reliance(
        "keras.optimizers.ScheduleFreeAdamW",
        "_momentums",
        "what follows an adapter that is loaded",
        since=(3, 14),
    ),
    Reliance(
        "keras.optimizers.Muon",
        "_should_use_adamw",
        "which variables it treats as matrices",
    ),
    # Around calls
    Reliance(
        f"{_COMMON}.global_state",
        "get_global_attribute set_global_attribute",
        "the state of Keras around a call",
    ),
    Reliance(
        f"{_COMMON}.stateless_scope",
        "get_stateless_scope in_stateless_scope",
        "values of variables in a stateless call",
    ),
    Reliance(
        "keras.src.models.functional",
        "Functional",
        "models whose configuration has their layers', and which have called them",
    ),
    Reliance(
        "keras.src.export.export_utils", "get_input_signature", "what exporters feed"
    ),
)
# Read where they exist; there is another way where they do not.
OPTIONAL = ("_use_fused_attention_op",)  # of attention layers of keras-hub


def version_of_keras() -> Version:
    """Return the major and minor version of the installed Keras."""
    return version_numbers(keras.__version__)


def version_numbers(version: str) -> Version:
    """Return the major and minor version, `(3, 16)` of `"3.16.0.dev2026102704"`."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def concerns_us(reliance: Reliance) -> bool:
    """Return whether the installed Keras and the backend in use should have it."""
    right_backend = reliance.backend in (None, keras.backend.backend())
    return right_backend and reliance.since <= version_of_keras() < reliance.until


def missing_names(reliance: Reliance) -> list[str]:
    """Return the names that an owner does not have, all of them without the owner."""
    names = reliance.names.split()
    try:
        owner = _resolve(reliance.owner)
    except (AttributeError, ImportError):
        return names
    used = set(_names_in_code(owner)) if inspect.isclass(owner) else set()
    return [name for name in names if not hasattr(owner, name) and name not in used]


def require(reliances: tuple[Reliance, ...] = RELIANCES) -> None:
    """Check all that concerns the installed Keras and the backend in use.

    Raises:
        ImportError: A name is missing.
    """
    for reliance in filter(concerns_us, reliances):
        if missing := missing_names(reliance):
            raise ImportError(
                f"keras_randlora relies on `{reliance.owner}.{missing[0]}` "
                f"({reliance.purpose}), which Keras {keras.__version__} with the "
                f"backend {keras.backend.backend()} does not have. Install a version "
                "of keras_randlora that knows this Keras, or an older Keras."
            )


def _resolve(name: str) -> Any:
    """Return the class or module with a full name."""
    parts = name.split(".")
    found, known = importlib.import_module(parts[0]), parts[0]
    for part in parts[1:]:
        known = f"{known}.{part}"
        try:
            found = getattr(found, part)
        except AttributeError:
            found = importlib.import_module(known)
    return found


def _names_in_code(kind: type) -> Iterator[str]:
    """Yield the names of attributes in the code of a class and of its bases."""
    for base in kind.__mro__[:-1]:
        yield from getattr(base, "__annotations__", ())
        for member in vars(base).values():
            functions: list[Any] = [member]
            if isinstance(member, property):
                functions = [member.fget, member.fset]
            for function in filter(callable, functions):
                code = getattr(inspect.unwrap(function), "__code__", None)
                if isinstance(code, CodeType):
                    yield from _names_of(code)


def _names_of(code: CodeType) -> Iterator[str]:
    """Yield the names in a code object and in the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_of(constant)
