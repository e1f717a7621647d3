"""Direct preference optimization, with the base model as the reference policy.

    KERAS_BACKEND=jax python examples/dpo.py
    KERAS_BACKEND=torch python examples/dpo.py --preset smollm2 --data pairs.jsonl

A line of the data is `{"prompt": …, "chosen": …, "rejected": …}`. There is no second
model: `kr.base_only` turns the adapters off for the reference's log-probabilities.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from command_line import UserError, exit_status, positive, user_choices
from keras import ops
from language_model import StepLosses, load, option_parser
from text_data import Document, Tokenizer, encode, rows

import keras_randlora as kr

FIELDS = ("prompt", "chosen", "rejected")
COURTESY = [
    {"prompt": f"{asked}? ", "chosen": f"{answer}, please.", "rejected": "No."}
    for asked, answer in (
        ("Tea", "Yes"),
        ("Milk with it", "A little"),
        ("A second cup", "With pleasure"),
        ("Now", "At once"),
    )
]


class Preferences(keras.Model):
    """A causal language model trained on preferences by DPO.

    The loss is that of Rafailov et al. (2023), equation 7, on pairs of rows:
    `-log sigmoid(beta · (gain(chosen) - gain(rejected)))`, where `gain` is an answer's
    log-probability minus that of the base model.

    Args:
        policy: An adapted causal language model.
        beta: Weight of a gain; a larger one keeps the policy closer to the base.
    """

    def __init__(self, policy: keras.Model, beta: float) -> None:
        super().__init__()
        self.policy = policy
        self.beta = beta
        self.preferred = keras.metrics.Mean(name="preferred")

    def call(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """Return the answers' log-probabilities, of shape `(pairs, 2)`."""
        length = inputs["token_ids"].shape[-1]
        token_ids, targets, weights = (
            ops.reshape(inputs[name], (-1, length))
            for name in ("token_ids", "targets", "weights")
        )
        logits = self.policy(
            {"token_ids": token_ids, "padding_mask": ops.ones_like(token_ids)},
            training=training,
        )
        log_probabilities = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
        of_targets = ops.take_along_axis(log_probabilities, targets[..., None], axis=-1)
        return ops.reshape(ops.sum(of_targets[..., 0] * weights, axis=-1), (-1, 2))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Return the mean loss of the pairs."""
        with kr.base_only(self.policy):
            reference = ops.stop_gradient(self(x, training=False))
        gains = y_pred - reference
        margins = self.beta * (gains[:, 0] - gains[:, 1])
        self.preferred.update_state(ops.cast(margins > 0, "float32"))
        return -ops.mean(ops.log_sigmoid(margins))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train an adapter and save it; return 0, or 2 where an option is wrong."""
    parser = option_parser(__doc__)
    parser.add_argument("--data", type=Path, help="pairs; default: four on courtesy")
    parser.add_argument("--beta", type=positive(float), default=0.1, help="see above")
    options = parser.parse_args(arguments)
    return exit_status("dpo.py", lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Load, adapt, train on pairs, and save the adapter."""
    with user_choices():
        pairs = load_pairs(options.data)
    policy, tokenizer = load(options.preset)
    data = pair_rows(pairs, tokenizer, options.sequence_length)
    print(kr.enable_randlora(policy, options.rank, alpha=2 * options.rank))
    train(policy, data, options)
    kr.save_adapter(policy, options.output)


def train(
    policy: keras.Model, data: dict[str, np.ndarray], options: argparse.Namespace
) -> keras.callbacks.History:
    """Train on the pairs, in order, for a number of steps."""
    count = options.steps * options.batch_size
    order = np.resize(np.arange(len(data["token_ids"])), count)
    model = Preferences(policy, options.beta)
    model.compile(keras.optimizers.Adam(options.learning_rate))
    return model.fit(
        {name: array[order] for name, array in data.items()},
        batch_size=options.batch_size,
        shuffle=False,
        verbose=0,
        callbacks=[StepLosses()],
    )


def load_pairs(path: Path | None) -> list[dict[str, str]]:
    """Read the pairs of a JSON Lines file."""
    if path is None:
        return COURTESY
    lines = path.read_text("utf-8").splitlines()
    pairs = [json.loads(line) for line in lines if line.strip()]
    for number, pair in enumerate(pairs, 1):
        if missing := [name for name in FIELDS if name not in pair]:
            raise UserError(f"{path}, pair {number} lacks '{missing[0]}'.")
    return pairs


def pair_rows(
    pairs: Sequence[dict[str, str]], tokenizer: Tokenizer, length: int
) -> dict[str, np.ndarray]:
    """Return padded rows of shape `(pairs, 2, length)`: the chosen, the rejected."""
    answers = [
        rows(
            [encode(Document(p["prompt"], p[name]), tokenizer) for p in pairs],
            length,
            tokenizer,
        )
        for name in ("chosen", "rejected")
    ]
    names = ("token_ids", "targets", "weights")
    return {
        name: np.stack(both, axis=1)
        for name, both in zip(names, zip(*answers, strict=True), strict=True)
    }


if __name__ == "__main__":
    sys.exit(main())
