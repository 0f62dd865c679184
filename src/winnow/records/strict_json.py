"""Files written whole or not at all, and JSON that any reader takes."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all.

    Args:
        path: the file.
        content: plain containers; NaN, which JSON does not have, is written as null.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(to_json(content) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file written beside its name and renamed once it is whole; nothing of it stays where writing fails.

    Args:
        path: the file's name.

    Yields:
        Where to write it.

    Raises:
        OSError: as the disk gives it, with the name of the file and, where the disk is full, what to do.
    """
    temporary = path.with_suffix(path.suffix + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if _full(error, path.parent):
            message = f"the disk of {path.parent} is full, {path.name} could not be written: free some of it and go on"
            raise OSError(errno.ENOSPC, message) from error
        raise


def _full(error: BaseException, folder: Path) -> bool:
    # torch reports a full disk as a RuntimeError of its archive writer.
    return getattr(error, "errno", None) == errno.ENOSPC or (
        isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < 2**20
    )


def to_json(content: Any) -> str:
    """JSON that any reader takes.

    Args:
        content: plain containers; other things are written as their text.

    Returns:
        Indented JSON, with null for NaN and text for infinities.
    """
    return json.dumps(_strict(content), indent=2, default=str, allow_nan=False)


def _strict(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _strict(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else str(content)
    return content
