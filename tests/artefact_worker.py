"""Runs artefacts of `export_merged` where `keras_randlora` cannot be imported.

Usage: python artefact_worker.py REQUESTS, a JSON file with a list of objects:

- `format`, `path`: the artefact; for `"preset"` also `class`, a name in
  `keras_hub.models`;
- `single`: whether there is one input only;
- `batches`: `.npz` files with named inputs (any name if there is one input only);
- `results`: `.npz` file to write, with the output of batch i as `output_i`.
"""

import json
import math
import os
import sys

import numpy as np


def tf_saved_model(path, request):
    # TensorFlow loads Keras, and torch with Triton crashes where it comes after.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    signature = loaded.signatures["serving_default"]
    _, specs = signature.structured_input_signature
    facts = {
        "names": sorted(specs),
        "shapes": [list(specs[name].shape) for name in sorted(specs)],
        "stored": stored_parameters(f"{path}/variables/variables"),
    }

    def run(inputs):
        (output,) = signature(**{k: tf.constant(v) for k, v in inputs.items()}).values()
        return output.numpy()

    return run, list(specs), facts


def stored_parameters(prefix):
    """Count the parameters in a checkpoint of TensorFlow."""
    import tensorflow as tf

    return sum(
        math.prod(shape)
        for name, shape in tf.train.list_variables(prefix)
        if name.endswith("VARIABLE_VALUE")
    )


def onnx(path, request):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [tensor.name for tensor in session.get_inputs()]
    return lambda inputs: session.run(None, inputs)[0], names, {}


def litert(path, request):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    runner = interpreter.get_signature_runner()
    names = interpreter.get_signature_list()["serving_default"]["inputs"]
    return lambda inputs: next(iter(runner(**inputs).values())).copy(), names, {}


def openvino(path, request):
    import openvino as ov

    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = ov.Core().compile_model(path, "CPU", exact)
    names = [tensor.any_name for tensor in model.inputs]
    return lambda inputs: model(inputs)[0], names, {}


def torch(path, request):
    import torch

    module = torch.export.load(path).module()
    single = request["single"]

    def run(inputs):
        given = {name: torch.tensor(array) for name, array in inputs.items()}
        return module(next(iter(given.values())) if single else given).numpy()

    facts = {
        "keras": "keras" in sys.modules,
        "parameters": sum(
            map(math.prod, (tensor.shape for tensor in module.state_dict().values()))
        ),
    }
    return run, ["input"] if single else [], facts


def keras(path, request):
    import keras
    import keras_hub  # noqa: F401

    return _keras_model(keras.saving.load_model(path))


def preset(path, request):
    import keras_hub

    kind = getattr(keras_hub.models, request["class"])
    return _keras_model(kind.from_preset(path, preprocessor=None))


def _keras_model(model):
    import keras

    names = [tensor.name for tensor in keras.tree.flatten(model.inputs)]
    kinds = {type(layer).__module__ for layer in model._flatten_layers()}
    assert not [kind for kind in kinds if "randlora" in kind]

    def run(inputs):
        given = inputs if len(names) > 1 else next(iter(inputs.values()))
        return keras.ops.convert_to_numpy(model(given, training=False))

    facts = {"stored": model.count_params(), "trainable": len(model.trainable_weights)}
    return run, names, facts


def transformers(path, request):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def run(inputs):
        with torch.no_grad():
            return model(
                input_ids=torch.tensor(inputs["token_ids"], dtype=torch.long),
                attention_mask=torch.tensor(inputs["padding_mask"]),
            ).logits.numpy()

    return run, ["token_ids", "padding_mask"], {}


RUNTIMES = {
    reader.__name__: reader
    for reader in (
        tf_saved_model,
        onnx,
        litert,
        openvino,
        torch,
        keras,
        preset,
        transformers,
    )
}


def require_no_package():
    """Fail if `keras_randlora` can be imported after all."""
    try:
        import keras_randlora  # noqa: F401
    except ImportError:
        return
    sys.exit("keras_randlora can be imported")


def main(requests):
    """Run every artefact on its batches and write the results."""
    require_no_package()
    for request in requests:
        reader = RUNTIMES[request["format"]]
        run, names, facts = reader(request["path"], request)
        results = {"facts": np.array(json.dumps(facts))}
        for index, batch in enumerate(request["batches"]):
            with np.load(batch) as file:
                inputs = dict(file)
            if len(names) == 1:
                inputs = {names[0]: next(iter(inputs.values()))}
            results[f"output_{index}"] = np.asarray(run(inputs))
        np.savez(request["results"], **results)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with open(sys.argv[1]) as file:
        main(json.load(file))
