"""Hooks of MkDocs, see `mkdocs.yml`.

Pages outside of `docs`, the home page too, are read from their place in the
repository. Links that leave the site lead to the published sources. Formulas become
MathML, which browsers draw themselves. Drawings are inlined, so that they take the
page's colours.
"""

import os
import re
from html import unescape
from pathlib import Path

from latex2mathml import converter
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Files outside `docs` that are pages of the site.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
}
COLAB = "https://colab.research.google.com/github"
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL
)
_PICTURE = re.compile(r'<img alt="([^"]*)" src="[^"]*?(img/[\w-]+\.svg)" ?/?>')


def on_files(files, config):
    """Add the pages that stand elsewhere."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links lead to pages of the site, or to the published sources."""
    if page.parent is None:  # no other page to list beside it
        page.meta.setdefault("hide", ["navigation"])
    folder = Path(page.file.abs_src_path).parent
    return _LINK.sub(
        lambda link: (
            link[1]
            + _destination(link[2], folder, page.file.src_uri, config)
            + (link[3] or "")
            + link[4]
        ),
        markdown,
    )


def on_page_content(html, page, config, files):
    """Turn formulas into MathML and inline the drawings."""
    html = _FORMULA.sub(_mathml, html)
    return _PICTURE.sub(lambda image: picture(image[2], image[1]), html)


def picture(path, description):
    """Return the SVG at a path below `docs`, described for those who listen."""
    svg = (ROOT / "docs" / path).read_text("utf-8")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)
    return f'<span class="picture">{svg}</span>'


def _destination(target, folder, page, config):
    """Return where a relative link from a file in `folder` leads on the site."""
    path = (folder / target).resolve()
    if not path.exists() or not path.is_relative_to(ROOT):
        return target  # MkDocs says what is wrong
    source = path.relative_to(ROOT).as_posix()
    if source in PAGES:
        uri = PAGES[source]
    elif source.startswith("docs/"):
        uri = source.removeprefix("docs/")
    elif path.suffix == ".ipynb":
        repository = config["extra"]["repository"].removeprefix("https://github.com/")
        return f"{COLAB}/{repository}/blob/main/{source}"
    else:
        kind = "tree" if path.is_dir() else "blob"
        return f"{config['extra']['repository']}/{kind}/main/{source}"
    return os.path.relpath(uri, Path(page).parent)


def _mathml(formula):
    """Return a formula as MathML."""
    block = formula[2] == "["
    mathml = converter.convert(
        unescape(formula[3]), display="block" if block else "inline"
    )
    return f'<div class="formula">{mathml}</div>' if block else mathml
