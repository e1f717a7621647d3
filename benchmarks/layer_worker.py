"""Worker process for single layers on one backend, for `benchmarks.single_layer`.

All methods of a layer live in this one process and step in turn.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_randlora as kr
from benchmarks.cases import RandLoRAMethod, parse_method
from benchmarks.operations import of_adapter
from benchmarks.processes import one_line, serve

REFERENCE = "keras-lora"
FEWEST, MOST = 3, 50  # rounds


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each layer, and one for each method that failed."""
    methods = [REFERENCE] + [
        f"randlora-{basis}-{way}"
        for basis in settings["bases"]
        for way in ("materialized", "factored")
    ]
    rows: list[dict[str, Any]] = []
    for inputs, outputs, tokens, rank in settings["layers"]:
        row = {"inputs": inputs, "outputs": outputs, "tokens": tokens, "rank": rank}
        layers, steps = {}, {}
        for method in methods:
            try:
                layers[method] = adapted(method, row, settings)
                steps[method] = stepper(layers[method], *tensors(row, settings))
                steps[method]()
            except Exception as error:
                steps.pop(method, None)
                label = f"{method}, {inputs}×{outputs}, {tokens} tokens, rank {rank}"
                rows.append({"method": label, "error": one_line(error)})
        if REFERENCE in steps:
            times = rounds(steps, settings["seconds"])
            counted = counts(layers, row, settings) | {
                "traffic_bytes": bytes_moved(steps)
            }
            rows.append({**row, **summary(times), **counted})
    return rows


def adapted(method: str, row: dict[str, Any], settings: dict[str, Any]) -> keras.Model:
    """Return a model of one layer, with LoRA or RandLoRA on it."""
    inputs = keras.Input((row["inputs"],), dtype=settings["dtype"])
    dense = keras.layers.Dense(
        row["outputs"], use_bias=False, dtype=settings["dtype"], name="dense"
    )
    model = keras.Model(inputs, dense(inputs))
    options = parse_method(method)
    if isinstance(options, RandLoRAMethod):
        kr.enable_randlora(
            model, rank=row["rank"], targets="all-linear", **options.options()
        )
    else:
        dense.enable_lora(settings["lora_rank"])
    return model


def tensors(row: dict[str, Any], settings: dict[str, Any]) -> tuple[Any, Any]:
    """Return an input and a gradient of the output."""
    rng = np.random.default_rng(0)
    return tuple(
        keras.ops.convert_to_tensor(
            rng.standard_normal((row["tokens"], width)), dtype=settings["dtype"]
        )
        for width in (row["inputs"], row["outputs"])
    )


def stepper(model: keras.Model, x: Any, gradient: Any) -> Callable[[], None]:
    """Return a function that computes the output and all gradients, and waits.

    They include the gradient of the input, as within a deep model.
    """
    return STEPPERS[keras.backend.backend()](model, x, gradient)


def torch_stepper(model: keras.Model, x: Any, gradient: Any) -> Callable[[], None]:
    """Run eagerly."""
    weights = [variable.value for variable in model.trainable_variables]
    x.requires_grad_(True)

    def step() -> None:
        for tensor in (x, *weights):
            tensor.grad = None
        model(x, training=True).backward(gradient)

    return step


def jax_stepper(model: keras.Model, x: Any, gradient: Any) -> Callable[[], None]:
    """Compile; frozen variables are arguments, not constants."""
    import jax

    trained = [variable.value for variable in model.trainable_variables]
    frozen = [variable.value for variable in model.non_trainable_variables]

    @jax.jit
    def compute(trained: Any, frozen: Any, x: Any, gradient: Any) -> Any:
        def outputs(trained: Any, x: Any) -> Any:
            return model.stateless_call(trained, frozen, x, training=True)[0]

        y, backward = jax.vjp(outputs, trained, x)
        return y, backward(gradient)

    return lambda: jax.block_until_ready(compute(trained, frozen, x, gradient))


def tensorflow_stepper(model: keras.Model, x: Any, gradient: Any) -> Callable[[], None]:
    """Compile with XLA."""
    import tensorflow as tf

    @tf.function(jit_compile=True)
    def compute(x: Any, gradient: Any) -> Any:
        sources = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x, training=True)
        return y, tape.gradient(y, [x, *sources], output_gradients=gradient)

    return lambda: compute(x, gradient)[0][0, 0].numpy()


STEPPERS = {
    "torch": torch_stepper,
    "jax": jax_stepper,
    "tensorflow": tensorflow_stepper,
}


def rounds(
    steps: dict[str, Callable[[], None]], seconds: float
) -> dict[str, list[float]]:
    """Step all methods in turn for about `seconds`; return their times."""
    times: dict[str, list[float]] = {method: [] for method in steps}
    started = time.perf_counter()
    for number in range(MOST):
        if number >= FEWEST and time.perf_counter() - started > seconds:
            break
        for method, step in steps.items():
            begun = time.perf_counter()
            step()
            times[method].append(time.perf_counter() - begun)
    return times


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Return medians, and the medians of the ratios within each round."""
    ratios = {
        method: statistics.median(np.divide(values, times[REFERENCE]).tolist())
        for method, values in times.items()
        if method != REFERENCE
    }
    medians = {method: statistics.median(values) for method, values in times.items()}
    return {"median_s": medians, "ratios": ratios, "rounds": len(times[REFERENCE])}


def counts(
    layers: dict[str, keras.Model], row: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the operations of each method, and the choice of `auto` for each basis."""
    tokens, area = row["tokens"], row["inputs"] * row["outputs"]
    counted = {REFERENCE: 6 * tokens * area + 6 * area * settings["lora_rank"]}
    picked = {}
    for method, model in layers.items():
        options = parse_method(method)
        if isinstance(options, RandLoRAMethod):
            product = model.get_layer("dense").randlora.product
            added = of_adapter(product, options.compute, tokens)
            counted[method] = 4 * tokens * area + added
            picked[options.basis] = product.way("auto", tokens)
    return {"operations": counted, "auto": picked}


def bytes_moved(steps: dict[str, Callable[[], None]]) -> dict[str, int]:
    """Return the bytes that each method's step moves; nothing but torch can count."""
    if keras.backend.backend() != "torch":
        return {}
    from benchmarks import traffic

    return {method: traffic.of_step(step) for method, step in steps.items()}


if __name__ == "__main__":
    serve(measure)
