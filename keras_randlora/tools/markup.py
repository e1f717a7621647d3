"""Tables as HTML, for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def html_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], notes: Iterable[str] = ()
) -> str:
    """Return a table with lines of text below it.

    Args:
        header: Titles of the columns.
        rows: Cells; numbers are aligned right, fractions have three digits.
        notes: Lines below the table.
    """
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    lines = "<br>".join(html.escape(note) for note in notes)
    return (
        f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
        f"<p>{lines}</p>"
    )


def _cell(value: object) -> str:
    if isinstance(value, (int, float)):
        number = f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"
        return f'<td style="text-align: right">{number}</td>'
    return f'<td style="text-align: left">{html.escape(str(value))}</td>'
