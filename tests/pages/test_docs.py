"""The documentation is whole: links, names, messages, notebooks, drawings."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_architecture import ROOMS

pytestmark = pytest.mark.any_backend

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "keras_randlora"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))


def constant(path, name):
    """Return a literal that a source assigns, without importing it."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} has no {name}")


# Pages of the site that stand outside `docs`, by their name on it.
ELSEWHERE = {
    page: ROOT / source for source, page in constant(DOCS / "hooks.py", "PAGES").items()
}
PAGES = sorted(DOCS.rglob("*.md"))
RENEW = runpy.run_path(str(DOCS / "pages.py"))
TEXTS = RENEW["sources"]()
FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(((?!\w+:)[^)#\s]*)(?:#([^)\s]+))?\)")
# What GitHub shows as it stands: what only extensions of MkDocs read, and the spaces of
# formulas, which lose their backslash there.
RAW = re.compile(
    r"^---$|^ *(?:!!!|\?{3}|===|:{3}|--8<--) |[\])]\{|\\[,;:!]", re.MULTILINE
)


def name_of(path):
    return str(path.relative_to(ROOT))


def words_of(path):
    return FENCE.sub("", path.read_text("utf-8"))


def anchors_of(path):
    """Return where links into a page may lead: its headings."""
    headings = re.findall(r"^#+ (.+)$", words_of(path), re.MULTILINE)
    return {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
        for heading in headings
    }


def leaves(nav):
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else leaves(value)


def test_every_page_is_in_the_navigation():
    written = {path.relative_to(DOCS).as_posix() for path in PAGES}
    listed = list(leaves(SITE["nav"]))
    assert sorted(listed) == sorted(written | set(ELSEWHERE))


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_links_lead_somewhere(path):
    for target, anchor in LINK.findall(words_of(path)):
        place = (path.parent / target).resolve() if target else path
        assert place.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors_of(place), f"{target} has no #{anchor}"


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_pages_show_the_sources(path):
    """Code of scripts and entries of the API stand in the pages, for any reader."""
    if RENEW["ENTRY"].search(page := path.read_text("utf-8")):
        pytest.importorskip("griffe")
    assert page == RENEW["renewed"](page), (
        f"{name_of(path)} is stale: run `python docs/pages.py`"
    )


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_github_shows_the_pages_too(path):
    assert RAW.findall(words_of(path)) == []


def test_what_is_stale_or_asked_for_is_renewed(tmp_path):
    script = tmp_path / "new.py"
    start, end = ("    # --8<-- [start:a]\n", "    # --8<-- [end:a]\n")
    script.write_text(f"if 1:\n{start}    b = 2\n{end}")
    fresh = f"<!-- code: {script}:a -->\n```python\nb = 2\n```\n"
    asked = f'```python\n--8<-- "{script}:a"\n```\n'
    assert RENEW["renewed"](asked) == RENEW["renewed"](fresh) == fresh
    assert RENEW["renewed"](fresh.replace("b = 2", "b = 3")) == fresh
    with pytest.raises(ValueError, match="new.py has no section 'c'"):
        RENEW["renewed"](fresh.replace(":a -", ":c -"))


def included(path):
    """Return the sections that a page shows, as pairs of script and name."""
    return [found[:2] for found in RENEW["CODE"].findall(path.read_text("utf-8"))]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_sections_are_shown_in_the_order_in_which_they_run(path):
    shown = {}
    for script, section in included(path):
        shown.setdefault(script, []).append(section)
    for script, sections in shown.items():
        content = (ROOT / script).read_text("utf-8")
        assert sections == sorted(sections, key=lambda s: content.index(f"start:{s}]"))


def test_every_section_of_a_guide_is_shown():
    shown = {found for path in PAGES for found in included(path)}
    for script in (ROOT / "examples" / "guides").glob("*.py"):
        for section in re.findall(r"\[start:([\w-]+)\]", script.read_text("utf-8")):
            assert (name_of(script), section) in shown


def test_every_public_name_is_in_the_reference():
    pages = [path.read_text("utf-8") for path in (DOCS / "api").glob("*.md")]
    entries = [found[0] for page in pages for found in RENEW["ENTRY"].findall(page)]
    assert sorted(entries) == sorted(constant(PACKAGE / "__init__.py", "__all__"))


def messages():
    """Return the literal strings of the package, with … for what is filled in."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", "…") for part in node.values]
                found.append("".join(p if isinstance(p, str) else "…" for p in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quotes(quoted, message):
    """Return whether the parts of a quotation stand in a message, in their order."""
    place = 0
    for part in quoted.split("…"):
        place = message.find(part.strip(), place)
        if place < 0:
            return False
        place += len(part.strip())
    return True


def test_quoted_messages_occur_in_the_sources():
    page = (DOCS / "guides" / "troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r"^ *```text\n *(.+)\n *```$", page, re.MULTILINE)
    assert len(quoted) > 50
    assert page.count("```text") == len(quoted)
    known = messages()
    unknown = [q for q in quoted if not any(quotes(q, message) for message in known)]
    assert unknown == []


def test_a_changed_message_would_be_seen():
    assert quotes("Layer '…' is adapted.", "Layer '…' is adapted. Call …")
    assert not quotes("Layer '…' is adapted.", "Layer '…' is frozen. Call …")
    assert not quotes("Layer '…' is adapted.", "is adapted. Layer '…'")


NOTEBOOKS = runpy.run_path(str(DOCS / "notebooks.py"))


@pytest.mark.parametrize("guide", NOTEBOOKS["GUIDES"])
def test_notebooks_are_those_of_the_guides(guide):
    nbformat = pytest.importorskip("nbformat")
    path = NOTEBOOKS["place"](guide)
    assert path.read_text("utf-8") == NOTEBOOKS["text"](guide), (
        "run `python docs/notebooks.py`"
    )
    nbformat.validate(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("guide", NOTEBOOKS["GUIDES"])
def test_a_notebook_runs_what_the_script_runs(guide):
    script = (ROOT / "examples" / "guides" / f"{guide}.py").read_text("utf-8")
    cells = NOTEBOOKS["notebook"](guide)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert "KERAS_BACKEND" in code[0]
    in_the_notebook = ast.parse("\n".join(code[1:]))
    in_the_script = ast.parse(script)
    assert ast.dump(in_the_notebook) == ast.dump(
        ast.Module(in_the_script.body[1:], in_the_script.type_ignores)
    )


DRAWINGS = runpy.run_path(str(DOCS / "drawings.py"))["DRAWINGS"]


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_those_of_the_script(name):
    drawn = (DOCS / "img" / name).read_text("utf-8")
    assert drawn == DRAWINGS[name](), "run `python docs/drawings.py`"


def test_the_drawing_of_the_house_has_every_room_in_its_place():
    """From the highest to the lowest; what stands in one row, as it is read."""
    drawing = (DOCS / "img" / "house.svg").read_text("utf-8")
    found = re.findall(r'<text x="(\d+)" y="(\d+)"[^>]*class="code">(\w+)<', drawing)
    placed = sorted(found, key=lambda room: (int(room[1]), int(room[0])))
    expected = [room for room in reversed(ROOMS) if not room.startswith("_")]
    assert [name for _, _, name in placed] == expected


@pytest.mark.parametrize("name", ["architecture.md", "img/tensor.svg"])
def test_modules_that_are_named_exist(name):
    text = (DOCS / name).read_text("utf-8")
    rooms = "|".join(room for room in ROOMS if (PACKAGE / room).is_dir())
    named = set(re.findall(rf"[`>](({rooms})\.[a-z_]+)[`<]", text))
    assert len(named) > 10
    missing = [
        m for m, _ in named if not (PACKAGE / f"{m.replace('.', '/')}.py").exists()
    ]
    assert missing == []


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outside = re.compile(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="?https?://')
    for page in tmp_path.rglob("*.html"):
        html = page.read_text("utf-8")
        assert not outside.search(html), f"{page} loads something from elsewhere"
        assert "arithmatex" not in html, f"{page} has a formula that is not MathML"
