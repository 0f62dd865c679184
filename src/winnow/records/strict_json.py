"""JSON that any reader takes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from winnow.records.whole import replacing


def write_json(path: Path, content: Any, durable: bool = True) -> None:
    """Write JSON whole or not at all.

    Args:
        path: the file.
        content: plain containers; NaN, which JSON does not have, is written as null.
        durable: as in :func:`replacing`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable) as temporary:
        temporary.write_text(to_json(content) + "\n", encoding="utf-8")


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
