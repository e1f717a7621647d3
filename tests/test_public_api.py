"""A public name comes or goes only with a line in the changelog."""

import re
from pathlib import Path

import public_api
import pytest

import keras_randlora as kr

pytestmark = pytest.mark.any_backend

CHANGELOG = (Path(__file__).parents[1] / "CHANGELOG.md").read_text("utf-8")


def section(title, text=CHANGELOG):
    """Return what stands under a heading of the second level, "" if there is none."""
    match = re.search(
        rf"^## \[{re.escape(title)}\].*?\n(.*?)(?=^## |\Z)", text, re.M | re.S
    )
    return match.group(1) if match else ""


def unmentioned(names, text):
    """Return the names that do not stand in backticks in the text."""
    quoted = set(re.findall(r"`([^`\n]+)`", text))
    words = {word for code in quoted for word in re.findall(r"\w+", code)}
    return sorted(n for n in names if re.findall(r"\w+", n)[-1] not in words)


def test_what_came_and_went_stands_in_the_changelog():
    now, before = public_api.current(), public_api.released()
    assert before, "write the names of the release: python tests/released_files.py"
    news = section("Unreleased")
    assert unmentioned(now - before, news) == []
    removed = news.partition("### Removed")[2].partition("\n### ")[0]
    assert unmentioned(before - now, removed) == []


def test_the_version_has_its_section():
    assert re.fullmatch(r"\d+\.\d+\.\d+", kr.__version__)
    assert section(kr.__version__).strip()


@pytest.mark.parametrize(
    "names, text, missing",
    [
        ({"enable_randlora(speed)"}, "`speed` of `enable_randlora`", []),
        ({"enable_randlora(speed)"}, "speed, without backticks", 1),
        ({"analysis.cka"}, "`kr.analysis.cka(x, y)`", []),
        ({"analysis.cka"}, "`ckas`", 1),
    ],
)
def test_the_check_sees_what_it_asks_for(names, text, missing):
    assert unmentioned(names, text) == (missing and sorted(names))


def test_sections_end_where_the_next_begins():
    text = "## [Unreleased]\n- a\n\n## [1.0.0] - 2026\n- b\n"
    assert section("Unreleased", text).strip() == "- a"
    assert section("1.0.0", text).strip() == "- b"
    assert section("2.0.0", text) == ""
