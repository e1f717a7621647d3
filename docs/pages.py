"""Renew what the pages take from the sources: code of examples, and the API entries.

    python docs/pages.py

A page shows a section of a script below `<!-- code: FILE:SECTION -->`, and a public
name between `<!-- api: NAME -->` and `<!-- end -->`. New code can be asked for with
`--8<-- "FILE:SECTION"` as the only line of a block.
"""

import ast
import functools
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
WIDTH = 88
_ASKED = re.compile(r'^```python\n--8<-- "([^"\n]+)"\n```$', re.MULTILINE)
CODE = re.compile(
    r"^<!-- code: ([^:\n]+):([\w-]+) -->\n```python\n(.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
ENTRY = re.compile(
    r"^<!-- api: ([\w.]+)(?: with ([\w, ]+))? -->\n(.*?)^<!-- end -->$",
    re.DOTALL | re.MULTILINE,
)
_EXAMPLE = re.compile(r"^Example:\n", re.MULTILINE)
_SECTIONS = {
    "parameters": "Parameters",
    "attributes": "Attributes",
    "yields": "Yields",
    "raises": "Raises",
    "warns": "Warns",
}


def sources():
    """Return the pages: all Markdown that the repository shows."""
    folders = ("", "docs/**/", "benchmarks/", "examples/**/")
    return [path for folder in folders for path in sorted(ROOT.glob(f"{folder}*.md"))]


def renewed(page):
    """Return the text of a page with the code and the entries of the sources."""
    page = _ASKED.sub(r"<!-- code: \1 -->\n```python\n```", page)
    page = CODE.sub(_code, page)
    return ENTRY.sub(_entry, page)


def section(path, name):
    """Return the part of a script between the marks of a section."""
    script = (ROOT / path).read_text("utf-8")
    try:
        _, rest = script.split(f"# --8<-- [start:{name}]\n")
        inside, _ = rest.split(f"# --8<-- [end:{name}]\n")
    except ValueError:
        raise ValueError(f"{path} has no section {name!r}, or several") from None
    lines = [line for line in inside.splitlines() if "# --8<-- [" not in line]
    return textwrap.dedent("\n".join(lines)).strip("\n")


def _code(found):
    path, name, _ = found.groups()
    return f"<!-- code: {path}:{name} -->\n```python\n{section(path, name)}\n```"


def _entry(found):
    name, members, _ = found.groups()
    start = found[0].partition("\n")[0]
    only = members.split(", ") if members else None
    return f"{start}\n\n{entry(name, only)}\n<!-- end -->"


# Entries of the API.


@functools.cache
def _package():
    """Return the package as griffe reads it, without importing it."""
    import griffe

    options = {"warn_missing_types": False, "warn_unknown_params": False}
    return griffe.load(
        "keras_randlora",
        search_paths=[ROOT],
        docstring_parser="google",
        docstring_options=options,
    )


def entry(name, only=None):
    """Return the Markdown of a public name: signature, words, sections, example.

    Args:
        name: A function, class or module, with dots below the package.
        only: The members to show; by default all public ones with a docstring.
    """
    found = _found(name)
    parts = [] if found.is_module else _described(found, name, "##")
    if found.is_module:
        parts += _words(found)
        for member in only or ast.literal_eval(str(found["__all__"].value)):
            parts.append(entry(f"{name}.{member}"))
    elif found.is_class:
        for member in only or _public_members(found):
            shown = f"{name.rpartition('.')[2]}.{member}"
            parts += _described(found.members[member], shown, "###")
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _found(name):
    """Return what a public name stands for; not the module that is named alike."""
    found = _package()[name]
    found = found.final_target if found.is_alias else found
    alike = name.rpartition(".")[2]
    return found[alike] if found.is_module and alike in found.members else found


def _public_members(owner):
    return [
        name
        for name, member in owner.members.items()
        if member.docstring and not name.startswith("_")
    ]


def _described(found, name, level):
    """Return the parts of an entry: heading, signature, docstring."""
    parts = [f"{level} `{name}`"]
    if not found.is_attribute:
        parts.append(f"```python\n{_signature(found, name)}\n```")
    return parts + _words(found)


def _signature(found, name):
    """Return a signature in one line, or with one line for each parameter."""
    owner = found.members.get("__init__", found) if found.is_class else found
    parameters = [p for p in owner.parameters if p.name not in ("self", "cls")]
    shown = _with_marks(parameters)
    end = f") -> {owner.returns}" if not found.is_class and owner.returns else ")"
    start = f"class {name}(" if found.is_class else f"{name}("
    line = start + ", ".join(shown) + end
    if len(line) <= WIDTH:
        return line
    return "\n".join([start, *(f"    {parameter}," for parameter in shown), end])


def _with_marks(parameters):
    """Return parameters as they are written, with a `*` before keyword-only ones."""
    shown, keywords = [], False
    for parameter in parameters:
        kind = parameter.kind.value
        if kind == "keyword-only" and not keywords:
            shown.append("*")
        keywords = keywords or kind in ("keyword-only", "variadic positional")
        stars = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        text = stars + parameter.name
        if parameter.annotation is not None:
            text += f": {parameter.annotation}"
        if parameter.default is not None and not stars:
            equals = " = " if parameter.annotation is not None else "="
            text += f"{equals}{parameter.default}"
        shown.append(text)
    return shown


def _words(found):
    """Return the parts of a docstring."""
    parts = []
    for part in found.docstring.parsed:
        kind = part.kind.value
        if kind == "text":
            words, *example = _EXAMPLE.split(part.value)
            parts.append(words)
            parts += [_example(text.strip()) for text in example]
        elif kind == "returns":
            words = "\n".join(item.description for item in part.value)
            parts.append(f"**Returns**\n\n{words}")
        else:
            lines = [_item(kind, item) for item in part.value]
            parts.append(f"**{_SECTIONS[kind]}**\n\n" + "\n".join(lines))
    return [part for part in parts if part.strip()]


def _example(text):
    """Return an example: words, if it has some, and what is typed."""
    words, _, typed = text.partition(">>> ")
    words = f"{words.strip()}\n\n" if words.strip() else ""
    return f"**Example**\n\n{words}```pycon\n>>> {typed}\n```"


def _item(kind, item):
    name = item.annotation if kind in ("raises", "warns") else item.name
    words = textwrap.indent(item.description, " " * 4).strip()
    return f"- `{name}`: {words}"


def main():
    """Write the pages that are stale."""
    for path in sources():
        before = path.read_text("utf-8")
        after = renewed(before)
        if after != before:
            path.write_text(after, "utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
