"""Export as a `torch.export` program, a `.pt2` file that needs torch alone.

It runs with torch as the backend; see `export`.
"""

from __future__ import annotations

import warnings
from typing import Any

import keras

from keras_randlora.export.stages import Say
from keras_randlora.export.stateless import StatelessModel


def write_torch(model: keras.Model, path: str, say: Say) -> None:
    """Write the program, for the CPU and with dynamic axes.

    Raises:
        RuntimeError: The model cannot be traced, or a size of the example would become
            part of the program.
    """
    import torch

    say("tracing the model")
    function = StatelessModel(model)
    inputs = function.inputs
    example = inputs.nested(torch.tensor(array) for array in inputs.example())
    dynamic = inputs.nested(
        dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in inputs.open_axes()
    )
    with warnings.catch_warnings(), torch.no_grad(), keras.device("cpu"):
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(
                _module(model, function),
                tuple(example),
                dynamic_shapes={"arguments": tuple(dynamic)},
                strict=False,
            )
        except Exception as error:
            raise RuntimeError(
                f"torch.export cannot trace this model: {str(error)[-800:]}"
            ) from error
        for node in program.graph.nodes:
            for name in (
                "stack_trace",
                "nn_module_stack",
                "torch_fn",
                "source_fn_stack",
            ):
                node.meta.pop(name, None)
        say("writing the weights")
        torch.export.save(program, path)


def _module(model: keras.Model, function: StatelessModel) -> Any:
    """Return a module that holds the weights under their paths.

    The states of random generators are left out: nothing reads them.
    """
    import torch

    class Module(torch.nn.Module):
        def forward(self, *arguments: Any) -> Any:
            values = [
                getattr(self, names[id(variable)])
                if id(variable) in names
                else variable.value
                for variable in function.variables
            ]
            return function(values, keras.tree.flatten(arguments))

    module = Module()
    weights = {id(weight) for weight in model.weights}
    names = {
        id(variable): name.replace(".", "_")
        for name, variable in zip(function.names, function.variables, strict=True)
        if id(variable) in weights
    }
    for variable in function.variables:
        if id(variable) in names:
            value = variable.value.detach().cpu()
            module.register_buffer(names[id(variable)], value)
    return module.eval()
