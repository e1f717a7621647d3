"""What JAX keeps to itself of the processes that run one program."""

from __future__ import annotations

from typing import Any


def coordinator() -> Any:
    """Return the client of the service that JAX's processes were started with.

    Orbax waits for other processes by it as well. `wait_at_barrier`, `key_value_set`,
    `key_value_delete` and `blocking_key_value_get` are used. `None` where
    `jax.distributed` was not initialized.
    """
    from jax._src import distributed

    return distributed.global_state.client
