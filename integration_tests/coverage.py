"""Which part of the weights that it multiplies by is adapted, for every family.

    KERAS_BACKEND=torch python integration_tests/coverage.py

Prints a Markdown table: the share that `targets="all-linear"` reaches, the share with
`"conv"` beside it, and what is left out. Sizes are tiny, so that a small weight counts
for more than in a real model.
"""

import collections
import warnings

import families
import keras

import keras_randlora as kr
from keras_randlora.adapt import all_sites, multiplied
from keras_randlora.layers import is_convolution


def report_on(name, groups):
    """Return the adapted share of a family, and the kinds of layers left out.

    The kinds with how many entries of their weights there are.
    """
    model = families.FAMILIES[name].build()
    if not any(is_convolution(site.layer) for site in all_sites(model, {})):
        groups = [group for group in groups if group != "conv"]
    report = kr.enable_randlora(model, rank=2, targets=groups)
    everything = all_sites(model, {})
    counts, left = multiplied(everything), collections.Counter()
    for site in everything:
        if site.address in counts and not isinstance(site.layer, kr.RandLoRALayer):
            left[type(site.layer).__name__] += counts[site.address]
    return report.coverage, left


def main():
    """Print the table."""
    print("| family | `all-linear` | and `conv` | not in `all-linear` |")
    print("|---|--:|--:|---|")
    reached = collections.Counter()
    for name in families.names():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            linear, left = report_on(name, ["all-linear"])
            conv, _ = report_on(name, ["all-linear", "conv"])
        reached.update(linear=linear >= 0.99, conv=conv >= 0.99)
        kinds = ", ".join(sorted(left)) or "–"
        print(f"| {name} | {linear:.1%} | {conv:.1%} | {kinds} |", flush=True)
    count, backend = len(families.names()), keras.backend.backend()
    print(
        f"\nAt least 99 %: {reached['linear']} of {count} families with `all-linear`, "
        f"{reached['conv']} with `conv` beside it ({backend})."
    )


if __name__ == "__main__":
    main()
