"""Training sessions: a model with its method and batch, one step at a time."""

from typing import Any

import numpy as np

from benchmarks import operations
from benchmarks.cases import Case
from benchmarks.methods import adapt_keras, adapt_peft
from benchmarks.models import MODELS, build_keras, build_transformers

LEARNING_RATE = 1e-4


def open_session(case: Case) -> "KerasSession | PeftSession":
    """Build the model of a case and prepare it for training."""
    return PeftSession(case) if case.is_peft else KerasSession(case)


def batch(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids and the next token's ids, each `(batch, length)`.

    The same for every method and backend.
    """
    vocabulary = MODELS[case.model].vocabulary
    ids = np.random.default_rng(0).integers(
        1, vocabulary, (case.batch, case.length + 1)
    )
    return ids[:, :-1].astype("int32"), ids[:, 1:].astype("int32")


def require_device(case: Case) -> None:
    """Check that the framework computes on the device of the case.

    Raises:
        RuntimeError: It does not.
    """
    if case.backend == "torch":
        import torch

        found = torch.cuda.is_available()
    elif case.backend == "jax":
        import jax

        found = jax.default_backend() == "gpu"
    else:
        import tensorflow as tf

        found = bool(tf.config.list_physical_devices("GPU"))
    if found != (case.device == "gpu"):
        raise RuntimeError(f"{case.backend} {'has a' if found else 'sees no'} GPU.")


class KerasSession:
    """A keras-hub model, trained by `compile` and `train_on_batch` as Keras does it.

    Keras compiles the step with XLA on JAX, and on TensorFlow if there is a GPU.
    """

    def __init__(self, case: Case) -> None:
        import keras

        self.model = build_keras(MODELS[case.model], case.dtype)
        adapt_keras(self.model, case)
        self.model.compile(
            optimizer=keras.optimizers.AdamW(LEARNING_RATE),
            loss=next_token_loss,
            weighted_metrics=[],
        )
        inputs, self.labels = batch(case)
        self.inputs = {"token_ids": inputs, "padding_mask": np.ones_like(inputs)}
        self.case = case

    def step(self) -> float:
        """Train on the batch; return the loss once everything is computed."""
        loss = self.model.train_on_batch(self.inputs, self.labels)
        if self.case.backend == "jax":
            import jax

            jax.block_until_ready([v.value for v in self.model.trainable_variables])
        elif self.case.device == "gpu" and self.case.backend == "torch":
            import torch

            torch.cuda.synchronize()
        return float(loss)

    def trainable(self) -> int:
        """Return the number of trainable parameters."""
        return sum(int(np.prod(v.shape)) for v in self.model.trainable_variables)

    def operations(self) -> operations.Operations:
        """Return the counted operations of a step."""
        ours = operations.of_our_layers(self.model, self.case.tokens)
        return operations.of_step(self.case, ours)


def next_token_loss(labels: Any, logits: Any) -> Any:
    """Return each token's cross-entropy over the whole vocabulary.

    The logits are rows: on PyTorch this is the same call as in `PeftSession`.
    """
    from keras import ops

    rows = ops.reshape(logits, (-1, logits.shape[-1]))
    labels = ops.reshape(labels, (-1,))
    return ops.sparse_categorical_crossentropy(labels, rows, from_logits=True)


class PeftSession:
    """A transformers model with an adapter of PEFT, in a plain loop with AdamW."""

    def __init__(self, case: Case) -> None:
        import torch

        base = build_transformers(MODELS[case.model], case.dtype)
        device = "cuda" if case.device == "gpu" else "cpu"
        self.model = adapt_peft(base, case).to(device).train()
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=LEARNING_RATE)
        self.inputs, self.labels = (
            torch.from_numpy(array).long().to(device) for array in batch(case)
        )
        self.case = case

    def step(self) -> float:
        """Train on the batch; return the loss once everything is computed."""
        import torch

        logits = self.model(input_ids=self.inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), self.labels.flatten()
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.case.device == "gpu":
            torch.cuda.synchronize()
        return float(loss.detach())

    def trainable(self) -> int:
        """Return the number of trainable parameters."""
        return sum(weight.numel() for weight in self.weights)

    def operations(self) -> operations.Operations:
        """Return the counted operations of a step."""
        return operations.of_step(self.case)
