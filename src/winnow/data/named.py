"""Fields of a record by name, by path, or in a template."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from winnow.data.rejects import BadRow
from winnow.records.shown import shown


def unescaped(template: str) -> str:
    r"""A template with its line breaks and tabs: in Hydra's quotes, unlike YAML's, ``\n`` is a backslash and an n.

    Args:
        template: with ``\n``, ``\t``, or ``\\`` for a backslash.

    Returns:
        What they stand for; every other backslash stays.
    """
    meant = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda found: meant[found.group(1)], template)


class Template(string.Formatter):
    """Formats whole field names only: no attribute or index access from a template."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What a name stands for.

        Args:
            field_name: all that stands in the braces.
            args: none.
            kwargs: the record.

        Returns:
            The value, and the name.
        """
        return kwargs[field_name], field_name


class Missing(dict[str, Any]):
    """Looks template fields up in a record; one that is not there is an error that names it."""

    def __init__(self, record: Mapping[str, Any], role: str) -> None:
        super().__init__()
        self.record, self.role = record, role

    def __missing__(self, name: str) -> Any:
        value = find(self.record, name)
        if value is None:
            raise missing(self.record, name, self.role)
        return value


def names(template: str) -> set[str]:
    """First parts of the fields that a name or template looks at.

    Args:
        template: name, path with dots, or template.

    Returns:
        The keys of a record.
    """
    if "{" not in template:
        return {template.split(".")[0]}
    return {name.split(".")[0] for _, name, _, _ in string.Formatter().parse(template) if name}


def find(record: Mapping[str, Any], name: str) -> Any:
    """A field by name, or by a path with dots.

    Args:
        record: the record.
        name: name or path.

    Returns:
        What is there; None where nothing is.
    """
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def default(value: Any, otherwise: str) -> Any:
    """A value, or what stands for it where there is none.

    Args:
        value: None or empty where there is none.
        otherwise: what stands for it.

    Returns:
        One of them.
    """
    return otherwise if value is None or value == "" else value


def missing(record: Mapping[str, Any], name: str, role: str) -> BadRow:
    """The fault of a record without a field that was named.

    Args:
        record: the record.
        name: the field.
        role: what it should have been.

    Returns:
        The fault, with the keys there are.
    """
    known = ", ".join(f"`{shown(key)}`" for key in record) or "none"
    return BadRow(
        f"field `{name}` is missing or null",
        f"the record has {known}; name the field that holds the {role} in data.corpus.fields.{role}",
    )
