"""JSON lines, gzip-compressed or not, read so that an error names file and line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json_lines(path: str | Path, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSON-lines file with their line numbers; blank lines are passed over.

    Args:
        path: the file; relative to the folder the program was started in. Decompressed if it ends in ``.gz``.
        key: the config key that names it, for messages.

    Yields:
        Line number, from 1, and object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object, or the file is not UTF-8 text or not gzip.
    """
    file_path = Path(path).expanduser().absolute()
    if not file_path.is_file():
        raise FileNotFoundError(f"{key}: no file {file_path}")
    number = 0
    try:
        with gzip.open(file_path, "rb") if file_path.suffix == ".gz" else file_path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield number, _parse(text, file_path, number)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file_path}, line {number}: not UTF-8 text ({error.reason}) ({key})") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{file_path}, after line {number}: not a whole gzip file ({error}) ({key})") from error


def check_text(text: str, name: str, where: str) -> None:
    """Refuse what no tokenizer and no file takes: half of a surrogate pair, which JSON can spell.

    Args:
        text: the text.
        name: what it is of the record, for messages.
        where: where the record stands, for messages.

    Raises:
        ValueError: there is one; names the record, the place in the text and the fix.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: the {name} holds half of a surrogate pair ({text[error.start]!a} at character "
            f"{error.start}), which is no text: repair or remove the record"
        ) from None


def _parse(text: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path}, line {number}: JSON nested too deep to be a record") from None
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError):  # a number of thousands of digits
            raise ValueError(f"{path}, line {number}: {str(error).split(';')[0]}") from error
        hint = "; a JSON array must be split into one object per line" if text.lstrip().startswith("[") else ""
        raise ValueError(f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}{hint}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}, line {number}: one JSON object per line is needed, got {type(value).__name__}")
    return value
