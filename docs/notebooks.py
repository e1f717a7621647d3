"""Write `notebooks/*.ipynb`: guides as notebooks that open in Colab and Kaggle.

    python docs/notebooks.py

Words and code are those of the page in `docs/guides`.
"""

import json
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDES = ("gemma", "llama")
_SITE = (ROOT / "mkdocs.yml").read_text("utf-8")
REPOSITORY = re.search(r"^  repository: (\S+)$", _SITE, re.MULTILINE)[1]
_CODE = re.compile(r"<!-- code: .*? -->\n```python\n(.*?)\n```\n?", re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)")


def notebook(guide):
    """Return a guide as the content of a notebook."""
    page = (ROOT / "docs" / "guides" / f"{guide}.md").read_text("utf-8")
    title, _, rest = page.partition("\n")
    words, *parts = _CODE.split(rest)
    cells = [_markdown(f"{title}\n\n{_badges(guide)}"), _code(_set_up())]
    cells.append(_markdown(words))
    for code, words in zip(*[iter(parts)] * 2, strict=True):
        cells.append(_code(code))
        if words.strip():
            cells.append(_markdown(words))
    for number, cell in enumerate(cells):
        cell["id"] = f"{guide}-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {
            "accelerator": "GPU",
            "colab": {"name": f"{guide}.ipynb", "provenance": []},
            "kernelspec": kernel,
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def text(guide):
    """Return the file of a notebook."""
    return json.dumps(notebook(guide), indent=1, ensure_ascii=False) + "\n"


def place(guide):
    """Return the path of a guide's notebook."""
    return ROOT / "notebooks" / f"{guide}.ipynb"


def _badges(guide):
    source = f"{REPOSITORY}/blob/main/notebooks/{guide}.ipynb"
    github = source.removeprefix("https://github.com/")
    return (
        f"[Open in Colab](https://colab.research.google.com/github/{github}) · "
        f"[Open in Kaggle](https://kaggle.com/kernels/welcome?src={source})"
    )


def _set_up():
    return (
        f'%pip install -q "keras-randlora[hub,jax] @ git+{REPOSITORY}"\n\n'
        "import os\n\n"
        'os.environ["KERAS_BACKEND"] = "jax"  # or "tensorflow", "torch"\n\n'
        "import kagglehub\n\n"
        "kagglehub.login()  # the account that has accepted the model's licence"
    )


def _markdown(words):
    shown = [line for line in words.splitlines() if "../notebooks/" not in line]
    source = _absolute("\n".join(shown).strip())
    return {
        "cell_type": "markdown",
        "metadata": {},
        "source": source.splitlines(keepends=True),
    }


def _code(source):
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }


def _absolute(words):
    """Let the page's relative links lead to the published sources."""

    def link(match):
        path = posixpath.normpath(posixpath.join("docs/guides", match[1]))
        return f"]({REPOSITORY}/blob/main/{path}{match[2] or ''})"

    return _LINK.sub(link, words)


if __name__ == "__main__":
    for guide in GUIDES:
        place(guide).write_text(text(guide), "utf-8")
        print(place(guide).relative_to(ROOT))
