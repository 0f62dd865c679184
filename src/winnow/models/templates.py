"""Chat templates for models that have none, or whose own is not the one to train with."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

STAND_INS = ("chatml", "plain")
"""Templates of this package: ``chatml`` with its marks, ``plain`` with the names of the roles. Both write tools, tool
calls and thoughts, of every turn."""


def template_of(given: str) -> str:
    """A chat template by name or file.

    Args:
        given: a name of ``STAND_INS``, or a file: Jinja, or a tokenizer's folder whose template is taken;
            ``model.chat_template``.

    Returns:
        The template.

    Raises:
        ValueError: there is no such name and no such file.
    """
    if given in STAND_INS:
        return (files("winnow") / "models" / "templates" / f"{given}.jinja").read_text(encoding="utf-8")
    path = Path(given).expanduser()
    if path.is_dir():
        path /= "chat_template.jinja"
    if not path.is_file():
        raise ValueError(f"model.chat_template={given}: no such file; give one, or a name: {', '.join(STAND_INS)}")
    return path.read_text(encoding="utf-8")
