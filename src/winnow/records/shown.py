"""Text from data where people read it: as it stands, never as markup or as orders to a terminal."""

from __future__ import annotations

import logging
import unicodedata
from typing import Any

from rich.table import Table
from rich.text import Text

INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's control and format characters, surrogates, and separators of lines."""
LONGEST_LABEL = 120
"""Characters of a label in a picture, which would else be pushed out of it by its own legend."""


def shown(text: object, keep: str = "", pictures: bool = True) -> str:
    r"""Text with every character that a terminal would obey, or nobody would see, as a symbol.

    Args:
        text: anything; its ``str`` is taken.
        keep: such characters that stay.
        pictures: show control characters below 32 as U+2400 on, which not every font has.

    Returns:
        The text; control characters as their pictures, others as ``\xNN`` or ``\uNNNN``.
    """
    return "".join(char if char in keep else _symbol(char, pictures) for char in str(text))


class PlainFormatter(logging.Formatter):
    """Writes a line of a log, and the traceback behind it, as they stand: whatever data or file names they quote."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; line breaks and tabs stay."""
        return shown(super().format(record), keep="\n\t")


def plotted(text: object) -> str:
    """Text as a label for matplotlib, which reads dollars as mathematics and hides what begins with an underscore.

    Args:
        text: anything.

    Returns:
        The label; of very long text the beginning.
    """
    label = shown(text, "\n", pictures=False)
    label = label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
    label = label.replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


class PlainTable(Table):
    """A table of rich whose title, headers and cells are text, not markup.

    Args:
        title: the title; None for none.
        **options: as for ``rich.table.Table``.
    """

    def __init__(self, title: str | None = None, **options: Any) -> None:
        super().__init__(title=None if title is None else Text(shown(title), style="table.title"), **options)

    def add_column(self, header: Any = "", *arguments: Any, **options: Any) -> None:
        """Add a column.

        Args:
            header: its title; line breaks in it stay.
            *arguments: as for ``Table.add_column``.
            **options: likewise.
        """
        super().add_column(_plain(header, "\n"), *arguments, **options)

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row.

        Args:
            *cells: texts.
            **options: as for ``Table.add_row``.
        """
        super().add_row(*(_plain(cell) for cell in cells), **options)


def _plain(value: Any, keep: str = "") -> Any:
    return Text(shown(value, keep)) if isinstance(value, str) else value


def _symbol(char: str, pictures: bool) -> str:
    if unicodedata.category(char) not in INVISIBLE:
        return char
    code = ord(char)
    if pictures and (code < 32 or code == 127):
        return chr(0x2421 if code == 127 else 0x2400 + code)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
