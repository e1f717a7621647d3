"""Write `img/house.svg` and `img/tensor.svg`, the drawings of `architecture.md`.

    python docs/drawings.py

The rooms and their order are those of `ROOMS` in `tests/test_architecture.py`.
"""

import ast
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
WIDTH = 680
LEFT, MIDDLE, RIGHT = 20, 340, 370  # of the two columns and the way between them
COLUMN = 290
# What each room is for. A room that is a single module is grey.
PURPOSES = {
    "tools": "helpers without knowledge of RandLoRA; private names of Keras",
    "bases": "A and B drawn from a seed, and products with B",
    "config": "the options, validated once",
    "update": "the formula, its gradient, kernels as matrices, the bank",
    "layers": "adapted layers: computation, variables, saving",
    "adapt": "a live model: select, enable, guard, merge, disable",
    "analysis": "trained models: spectra, CKA, loss landscapes",
    "planning": "prediction of memory; ranks for a budget",
    "data": "records and chat templates as tokens with weights",
    "files": "adapters, optimizers and mixtures of adapters on disk",
    "export": "the merged model for other runtimes",
    "peft": "folders of Hugging Face PEFT's RandLora, from and to",
    "callbacks": "checkpoints, logs in fit",
    "methods": "methods of keras.Model",
    "cli": "the command line",
}
FACES = ("cli", "methods", "callbacks")
STYLE = """
svg.drawing{--ink:#24313d;--quiet:#566573;--line:#8795a1;--frozen:#dde4ea;\
--trained:#f4b49f;--paper:#f5f7f9}
@media (prefers-color-scheme:dark){svg.drawing{--ink:#e3e8ee;--quiet:#a9b5c1;\
--line:#76838f;--frozen:#3c4856;--trained:#97513d;--paper:#262b36}}
svg.drawing text{fill:var(--ink);\
font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;stroke:none}
svg.drawing .quiet{fill:var(--quiet)}
svg.drawing .code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
svg.drawing .middle{text-anchor:middle}
svg.drawing .frozen{fill:var(--frozen);stroke:var(--line)}
svg.drawing .trained{fill:var(--trained);stroke:var(--line)}
svg.drawing .paper{fill:var(--paper);stroke:var(--line)}
svg.drawing .arrow{fill:none;stroke:var(--quiet);stroke-width:1.6}
svg.drawing .head{fill:var(--quiet)}
"""
HEAD = (
    '<defs><marker id="{id}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
    'markerHeight="8" orient="auto-start-reverse">'
    '<path d="M0 0 8 4 0 8z" class="head"/></marker></defs>'
)


def rooms():
    """Return the rooms that are drawn, the lowest first."""
    source = (DOCS.parent / "tests" / "test_architecture.py").read_text("utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "ROOMS":
            names = ast.literal_eval(node.value)
            return [name for name in names if not name.startswith("_")]
    raise ValueError("tests/test_architecture.py has no ROOMS")


def house():
    """Draw the rooms, the highest first: each imports from those below it."""
    names = rooms()
    package = DOCS.parent / "keras_randlora"
    single = [name for name in names if (package / f"{name}.py").is_file()]
    top = [name for name in reversed(names) if name in FACES]
    parts = []
    for x, name in zip((10, 220, 430), top, strict=True):
        parts += [
            _box(x, 10, 200, 52, "frozen"),
            _text(x + 14, 32, name, 16, "code"),
            _text(x + 14, 52, PURPOSES[name], 14),
        ]
    y = 70
    for name in reversed(names):
        if name in FACES:
            continue
        parts += [
            _box(10, y, 620, 38, "frozen" if name in single else "paper"),
            _text(24, y + 25, name, 16, "code"),
            _text(132, y + 25, PURPOSES[name], 14.5),
        ]
        y += 45
    parts += [
        _arrow(f"M655 14V{y - 11}", "house-head"),
        f'<text transform="translate(668 {y // 2}) rotate(90)" font-size="14" '
        'class="quiet middle">imports</text>',
    ]
    return _drawing(y + 3, "house-head", parts)


def tensor():
    """Draw the modules that a tensor passes."""
    # What is called from top to bottom.
    chain = [
        ("layers.adapted", "RandLoRALayer.call: bias, activation", "paper"),
        ("layers.adapter", "RandLoRAAdapter: λ and γ", "trained"),
        ("layers.product", "x · (W + M): materialized or factored", "paper"),
        ("update.formula", "M from λ, γ, A and B", "paper"),
        ("bases.operators", "products with B, dense or not", "paper"),
        ("update.bank", "the part of A and B a layer uses", "paper"),
        ("bases.kinds", "arrays drawn and stored for A, B", "paper"),
        ("bases.draws", "entries from seed, row, column", "paper"),
    ]
    # What stands beside the chain, and with which of its boxes it deals.
    beside = [
        (94, "layers.store", "weights files: W + M, λ and γ", 1),
        (152, "files.weights", "adapter files: λ and γ by layer", 1),
        (236, "update.layouts", "kernel ↔ matrix (inputs, outputs)", 2),
        (294, "layers.quantized", "W in floating point while it is used", 2),
        (352, "update.gradient", "keeps the input, forms M again", 2),
    ]
    place = [54 + 62 * number for number in range(len(chain))]
    parts = [_text(LEFT + 14, 24, "input x", 17), _text(RIGHT + 14, 24, "output", 17)]
    parts += [_arrow("M60 32V52"), _arrow(f"M310 {place[0] + 22}H410V32")]
    for y, (name, purpose, kind) in zip(place, chain, strict=True):
        parts += _module(LEFT, y, name, purpose, kind)
    for y in place[1:]:
        parts += [_arrow(f"M80 {y - 17}V{y - 1}"), _arrow(f"M106 {y}V{y - 16}")]
    for y, name, purpose, partner in beside:
        parts += _module(RIGHT, y, name, purpose, "paper")
        way = f"M{RIGHT - 2} {y + 22}H{MIDDLE}V{place[partner] + 22}H312"
        parts.append(_arrow(way, both=True))
    parts.append(_text(384, 510, "Files hold the seed, not the bases.", 14.5, "quiet"))
    return _drawing(place[-1] + 56, "head", parts)


def _module(x, y, name, purpose, kind):
    return [
        _box(x, y, COLUMN, 45, kind),
        _text(x + 14, y + 19, name, 16, "code"),
        _text(x + 14, y + 37, purpose, 14.5, "" if kind == "trained" else "quiet"),
    ]


def _box(x, y, width, height, kind):
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" class="{kind}" '
        'rx="6"/>'
    )


def _text(x, y, words, size, kind=""):
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" class="{kind}">'
        f"{escape(words)}</text>"
    )


def _arrow(way, head="head", both=False):
    start = f' marker-start="url(#{head})"' if both else ""
    return f'<path d="{way}" class="arrow" marker-end="url(#{head})"{start}/>'


def _drawing(height, head, parts):
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" class="drawing wide" '
        f'viewBox="0 0 {WIDTH} {height}" style="max-width:{WIDTH}px">',
        f"<style>{STYLE}</style>",
        HEAD.format(id=head),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


DRAWINGS = {"house.svg": house, "tensor.svg": tensor}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (DOCS / "img" / name).write_text(draw(), "utf-8")
