"""A griffe extension that formats the examples of docstrings on the site.

The package writes `Example:` and what a reader would type below it, which doctest runs;
griffe knows the indented section `Examples:`.
"""

import inspect
import re
import textwrap

import griffe

_SECTION = re.compile(
    r"^Example:\n(.*?)(?=^[A-Z][a-z]+:\n|\Z)", re.DOTALL | re.MULTILINE
)


class ExamplesInDocstrings(griffe.Extension):
    """Write `Example:` as griffe wants it."""

    def on_instance(self, *, obj, **kwargs):
        """Change the docstring of a module, class or function that was read."""
        if obj.docstring:
            text = inspect.cleandoc(obj.docstring.value)
            obj.docstring.value = _SECTION.sub(_examples, text)


def _examples(section):
    body = textwrap.indent(textwrap.dedent(section[1]).strip(), "    ")
    return f"Examples:\n{body}\n\n"
