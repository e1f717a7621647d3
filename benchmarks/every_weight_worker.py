"""Worker process for one method of `benchmarks.every_weight`."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import parse_method
from benchmarks.memory import HostMemory
from benchmarks.processes import serve
from benchmarks.session import LEARNING_RATE

WIDTH = {"gemma4": 1024, "mixtral": 512}
VOCABULARY = 256
MIXTRAL = dict(inner=1792, experts=8, heads=8, kv_heads=8, head_dim=64)


def measure(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the median time of a step, and the growth of memory."""
    open_ = peft_session if settings["method"] == "peft-lora" else keras_session
    memory = HostMemory()
    step, trainable = open_(settings)
    before = memory.settle()
    step()
    step()
    memory.settle()
    seconds = []
    for _ in range(settings["steps"]):
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    peak = memory.peak()
    return [
        {
            "median_s": statistics.median(seconds),
            "peak_bytes": peak,
            "grown_bytes": peak - before,
            "trainable": trainable,
        }
    ]


def keras_session(settings: dict[str, Any]) -> tuple[Callable[[], Any], int]:
    """Return a training step of a keras-hub backbone, and its trainable parameters."""
    import keras

    import keras_randlora as kr
    from examples import methods

    keras.utils.set_random_seed(0)
    model = BACKBONES[settings["model"]]()
    method = parse_method(settings["method"])
    targets = "experts" if settings["model"] == "mixtral" else "all-linear"
    if method == "full":
        for weight in model.trainable_weights:
            weight.trainable = "/experts/" in weight.path
    elif method == "keras-lora":
        methods.adapt(model, f"lora-{settings['lora_rank']}", targets=targets)
    else:
        kr.enable_randlora(
            model, rank=settings["rank"], targets=targets, **method.options()
        )
    model.compile(keras.optimizers.AdamW(LEARNING_RATE), "mse")
    inputs, wanted = batch(settings)
    if settings["model"] == "gemma4":
        inputs["position_ids"] = np.arange(settings["tokens"], dtype="int32")[None]
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_variables)
    return lambda: float(model.train_on_batch(inputs, wanted)), trainable


def gemma4() -> Any:
    """Return two blocks of a Gemma 4 with a small vocabulary."""
    import keras_hub

    return keras_hub.models.Gemma4Backbone(
        vocabulary_size=VOCABULARY,
        image_size=16,
        num_layers=2,
        num_query_heads=8,
        num_key_value_heads=8,
        hidden_dim=WIDTH["gemma4"],
        intermediate_dim=4096,
        head_dim=128,
        sliding_window_size=1024,
    )


def mixtral() -> Any:
    """Return one block of a Mixtral with a small vocabulary."""
    import keras_hub

    return keras_hub.models.MixtralBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_query_heads=MIXTRAL["heads"],
        num_key_value_heads=MIXTRAL["kv_heads"],
        hidden_dim=WIDTH["mixtral"],
        intermediate_dim=MIXTRAL["inner"],
        num_experts=MIXTRAL["experts"],
    )


BACKBONES = {"gemma4": gemma4, "mixtral": mixtral}


def batch(settings: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return one sequence of tokens, and target hidden states."""
    rng, tokens = np.random.default_rng(0), settings["tokens"]
    ids = rng.integers(1, VOCABULARY, (1, tokens)).astype("int32")
    wanted = rng.standard_normal((1, tokens, WIDTH[settings["model"]]))
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    return inputs, wanted.astype("float32")


def peft_session(settings: dict[str, Any]) -> tuple[Callable[[], Any], int]:
    """Return a training step of transformers' Mixtral with PEFT's LoRA on experts."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH["mixtral"],
        intermediate_size=MIXTRAL["inner"],
        num_hidden_layers=1,
        num_attention_heads=MIXTRAL["heads"],
        num_key_value_heads=MIXTRAL["kv_heads"],
        head_dim=MIXTRAL["head_dim"],
        num_local_experts=MIXTRAL["experts"],
        num_experts_per_tok=2,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    rank = settings["lora_rank"]
    adapter = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )
    model = peft.get_peft_model(transformers.MixtralModel(config), adapter).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE)
    inputs, wanted = batch(settings)
    ids, target = torch.from_numpy(inputs["token_ids"]).long(), torch.from_numpy(wanted)

    def step() -> float:
        states = model(input_ids=ids, use_cache=False).last_hidden_state
        loss = torch.nn.functional.mse_loss(states, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step, sum(weight.numel() for weight in weights)


if __name__ == "__main__":
    serve(measure)
