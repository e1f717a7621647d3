"""A linear function on JAX whose transpose is written by hand.

Reverse mode is forward mode transposed, so that such a function as the tangent of a
`jax.custom_jvp` gives it a hand-written gradient and leaves it forward mode, which
`jax.custom_vjp` refuses. `jax.custom_derivatives.linear_call` is made for that, but has
neither `vmap` nor second derivatives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

Array = Any
Linear = Callable[..., Sequence[Array]]


def linear_map(
    along: Linear, against: Linear, constants: Sequence[Array], values: Sequence[Array]
) -> Sequence[Array]:
    """Return `along(constants, *values)`, whose transpose is `against`.

    Args:
        along: Maps the constants and arrays to arrays, and is linear in the latter.
        against: Maps the constants and one cotangent for each result of `along` to
            one for each of `values`. Only the constants are kept for it.
        constants: Arrays.
        values: Arrays.
    """
    count = len(constants)

    def flat(function: Linear) -> Linear:
        return lambda *arrays: function(arrays[:count], *arrays[count:])

    return _primitive().bind(
        *constants, *values, along=flat(along), against=flat(against), constants=count
    )


@functools.cache
def _primitive() -> Any:
    """Return the operation, with its rules for each transform of JAX."""
    import jax
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir

    primitive = Primitive("randlora_linear_map")
    primitive.multiple_results = True

    def run(*arrays: Array, along: Linear, **_: Any) -> Sequence[Array]:
        return along(*arrays)

    def results(*arrays: Any, along: Linear, **_: Any) -> Sequence[Any]:
        return jax.make_jaxpr(along)(*arrays).out_avals

    def slope(
        arrays: Sequence[Array], tangents: Sequence[Any], **how: Any
    ) -> tuple[Any, Any]:
        along, count = how["along"], how["constants"]
        outputs = primitive.bind(*arrays, **how)
        changes = [0.0] * len(outputs)
        linear = [ad.instantiate_zeros(tangent) for tangent in tangents[count:]]
        if any(type(tangent) is not ad.Zero for tangent in tangents[count:]):
            changes = primitive.bind(*arrays[:count], *linear, **how)
        moved = [i for i in range(count) if type(tangents[i]) is not ad.Zero]
        if moved:

            def of_moved(*values: Array) -> Sequence[Array]:
                given = dict(enumerate(arrays)) | dict(zip(moved, values, strict=True))
                return along(*given.values())

            primals = [arrays[i] for i in moved]
            _, more = jax.jvp(of_moved, primals, [tangents[i] for i in moved])
            changes = [a + b for a, b in zip(changes, more, strict=True)]
        return outputs, changes

    def transposed(cotangents: Sequence[Any], *arrays: Any, **how: Any) -> list[Any]:
        along, against, count = how["along"], how["against"], how["constants"]
        cotangents = [ad.instantiate_zeros(cotangent) for cotangent in cotangents]
        how = {"along": against, "against": along, "constants": count}
        values = primitive.bind(*arrays[:count], *cotangents, **how)
        return [None] * count + list(values)

    def batched(arrays: Sequence[Array], axes: Sequence[Any], **how: Any) -> Any:
        along, against, count = how["along"], how["against"], how["constants"]
        size = next(
            array.shape[axis]
            for array, axis in zip(arrays, axes, strict=True)
            if axis is not None
        )
        values = [
            batching.bdim_at_front(array, axis, size)
            for array, axis in zip(arrays[count:], axes[count:], strict=True)
        ]
        constant_axes = tuple(axes[:count])

        def of_all(function: Linear) -> Linear:
            def mapped(*arrays: Array) -> Sequence[Array]:
                others = (0,) * (len(arrays) - count)
                return jax.vmap(function, constant_axes + others)(*arrays)

            return mapped

        how = {"along": of_all(along), "against": of_all(against), "constants": count}
        outputs = primitive.bind(*arrays[:count], *values, **how)
        return outputs, [0] * len(outputs)

    primitive.def_impl(run)
    primitive.def_abstract_eval(results)
    ad.primitive_jvps[primitive] = slope
    ad.primitive_transposes[primitive] = transposed
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=True))
    return primitive
