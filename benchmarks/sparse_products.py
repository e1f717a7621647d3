"""Time of sparse and dense products with a ternary basis on this machine.

The product is that of an update, `B · S` with B `(l, s)` ternary and S `(s, s)`
float32. It is compared with the dense product of a float copy of B (copy included, as
in the package):

- `csr torch`, `csr scipy`: compressed sparse rows, built beforehand;
- `gather-add`: sums of the rows of S at B's +1 and at its -1, no multiplication.
"""

import argparse
import time

import numpy as np

from keras_randlora import bases

SHAPES = [(576, 576), (1536, 576), (4096, 1024)]
SPARSITIES = {"66 %": 6, "93 %": 28, "98 %": 100, "99 %": 200}


def ways_of(basis, values):
    """Return `{name: function without arguments}`, all computing the same."""
    import scipy.sparse
    import torch

    held, dense_values = torch.from_numpy(basis), torch.from_numpy(values)
    rows = scipy.sparse.csr_array(basis.astype("float32"))
    pointers, columns, entries = (
        torch.from_numpy(array) for array in (rows.indptr, rows.indices, rows.data)
    )
    compressed = torch.sparse_csr_tensor(pointers, columns, entries, basis.shape)
    bags = [signed_bags(torch, basis, sign) for sign in (1, -1)]

    def gather_add():
        plus, minus = (
            torch.nn.functional.embedding_bag(columns, dense_values, starts, mode="sum")
            for columns, starts in bags
        )
        return plus - minus

    return {
        "dense": lambda: held.float() @ dense_values,
        "csr torch": lambda: compressed @ dense_values,
        "csr scipy": lambda: rows @ values,
        "gather-add": gather_add,
    }


def signed_bags(torch, basis, sign):
    """Return the columns of all entries equal to `sign`, and the start of each row."""
    row, column = np.nonzero(basis == sign)
    starts = np.searchsorted(row, np.arange(len(basis)))
    return torch.from_numpy(column), torch.from_numpy(starts)


def seconds(function, rounds):
    function()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return np.median(times)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(args.threads)
    names = ("csr torch", "csr scipy", "gather-add")
    print(f"| B | zeros | dense, ms | {' ÷ dense | '.join(names)} ÷ dense |")
    print("|---|--:|--:|--:|--:|--:|")
    rng = np.random.default_rng(0)
    for larger, smaller in SHAPES:
        values = rng.standard_normal((smaller, smaller)).astype("float32")
        for zeros, sparsity in SPARSITIES.items():
            spec = bases.BasisSpec("ternary", sparsity, seed=0)
            size = bases.PairSize(1, 1, larger, smaller)
            ways = ways_of(spec.kind.draw(spec, size)["basis_b"], values)
            results = [np.asarray(way()) for way in ways.values()]
            for result in results[1:]:
                np.testing.assert_allclose(result, results[0], rtol=1e-3, atol=1e-3)
            times = {name: seconds(way, args.rounds) for name, way in ways.items()}
            dense = times["dense"]
            ratios = " | ".join(f"{times[name] / dense:.2f}" for name in names)
            print(f"| {larger}×{smaller} | {zeros} | {1e3 * dense:.1f} | {ratios} |")


if __name__ == "__main__":
    main()
