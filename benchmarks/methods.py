"""Application of full fine-tuning, LoRA and RandLoRA to a built model."""

from typing import Any

from benchmarks.cases import Case, parse_method
from benchmarks.models import MODELS, NAMES


def adapt_keras(model: Any, case: Case) -> None:
    """Prepare a Keras model for the case's method."""
    import keras_randlora as kr
    from examples import methods

    method = parse_method(case.method)
    if method == "full":
        return
    if method == "keras-lora":
        # On exactly the layers that ours would adapt.
        methods.adapt(model, f"lora-{case.lora_rank}", targets=list(case.targets))
        return
    kr.enable_randlora(
        model, rank=case.rank, targets=list(case.targets), **method.options()
    )


def adapt_peft(model: Any, case: Case) -> Any:
    """Return a transformers model wrapped by PEFT for the case's method."""
    import peft

    names = NAMES[MODELS[case.model].family]
    modules = [names[name] for name in MODELS[case.model].targeted(case.targets)]
    if case.method == "peft-lora":
        rank = case.lora_rank
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=modules)
    else:
        alpha = 20 * case.rank
        config = peft.RandLoraConfig(
            r=case.rank, randlora_alpha=alpha, target_modules=modules
        )
    return peft.get_peft_model(model, config)
