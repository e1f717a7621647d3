"""Runs artefacts in a process of their own, see `artefact_worker.py`."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
from models import EXAMPLES, moved_adapter, structure_of, values_of

import keras_randlora as kr

WORKER = Path(__file__).with_name("artefact_worker.py")


def adapted(name, values=3, quantization=None, **options):
    """Return an adapted model whose λ and γ, drawn from `values`, matter."""
    model = EXAMPLES[name].build()
    if quantization:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers without a quantized form
            model.quantize(quantization)
    kr.enable_randlora(model, **{"rank": 3, "targets": "all-linear", **options})
    kr.set_adapter(model, moved_adapter(model, values))
    return model


def unchanging(model):
    """Return what an export must leave as it was."""
    structure = structure_of(model)
    # Keras's SavedModel leaves these behind on TensorFlow, all of them `None`.
    functions = {"train_function", "test_function", "predict_function"}
    structure["layers"] = [
        (*rest, None if names is None else [n for n in names if n not in functions])
        for *rest, names in structure["layers"]
    ]
    return structure, values_of(model)


def batches(name):
    """Return a batch, and one with another batch size and, for text, length."""
    example = EXAMPLES[name]
    full = example.inputs()
    full = full if isinstance(full, dict) else {"inputs": full}
    if example.causal:
        return [full, {key: array[:2, :4] for key, array in full.items()}]
    return [full, {key: array[:2] for key, array in full.items()}]


def outputs(model, inputs):
    """Return the logits of named inputs."""
    given = inputs if len(inputs) > 1 else next(iter(inputs.values()))
    return keras.ops.convert_to_numpy(model(given, training=False))


def run(folder, artefacts):
    """Run artefacts in one process that cannot import `keras_randlora`.

    Args:
        folder: Where the files between the processes go.
        artefacts: `(name of the example, format, path)` or the same with the name of
            a keras-hub class.

    Returns:
        For each artefact the facts that its runtime tells, and the list of outputs.
    """
    folder = Path(folder)
    stub = folder / "stub" / "keras_randlora"
    stub.mkdir(parents=True, exist_ok=True)
    (stub / "__init__.py").write_text("raise ImportError('not here')\n")
    requests = []
    for index, (name, format, path, *kind) in enumerate(artefacts):
        files = []
        for number, batch in enumerate(batches(name)):
            files.append(str(folder / f"{name}-{number}.npz"))
            np.savez(files[-1], **batch)
        requests.append(
            {
                "format": format,
                "path": str(path),
                "class": kind[0] if kind else None,
                "single": len(batches(name)[0]) == 1,
                "batches": files,
                "results": str(folder / f"results-{index}.npz"),
            }
        )
    request = folder / "requests.json"
    request.write_text(json.dumps(requests))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(WORKER), str(request)],
        env={**os.environ, "PYTHONPATH": str(stub.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = []
    for request in requests:
        with np.load(request["results"]) as file:
            facts = json.loads(str(file["facts"]))
            count = len(request["batches"])
            results.append((facts, [file[f"output_{i}"] for i in range(count)]))
    return results
