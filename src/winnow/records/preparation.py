"""Files of scores by candidate id, and beside each a JSON that says how it was made and what it cost."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from winnow.records.strict_json import write_json
from winnow.records.whole import replacing

SPENT = ("examples", "tokens", "seconds")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """What one part of a preparation took.

    Args:
        what: the part.
        examples: examples that went through a model, once for every time they did.
        tokens: their response tokens.
        seconds: it took.
    """

    what: str
    examples: int
    tokens: int
    seconds: float


def total(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Parts of a preparation and their sum.

    Args:
        parts: costs as plain containers.

    Returns:
        ``examples``, ``tokens``, ``seconds`` in all, and the ``parts``.
    """
    return {**{name: sum(part[name] for part in parts) for name in SPENT}, "parts": list(parts)}


def beside(path: Path) -> Path:
    """The JSON that belongs to a file of scores.

    Args:
        path: of the scores.

    Returns:
        The same name with the ending ``.json``.
    """
    return path.with_suffix(".json")


def check_file(path: Path, overwrite: bool) -> None:
    """Refuse a place for scores that is taken or cannot be written.

    Args:
        path: the file that is to be.
        overwrite: whether another one may be replaced.

    Raises:
        ValueError: the name does not end in ``.parquet``.
        FileExistsError: there is a file already.
    """
    if path.suffix != ".parquet":
        raise ValueError(f"file={path} must end in .parquet")
    taken = [str(one) for one in (path, beside(path)) if one.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{' and '.join(taken)} already there: choose another file=, or set overwrite=true")


def write_scores(path: Path, table: pd.DataFrame, facts: Mapping[str, Any], costs: Sequence[Cost]) -> None:
    """Write scores and the JSON beside them, each whole or not at all.

    Args:
        path: of the scores.
        table: a row per candidate.
        facts: how they were made, plain containers.
        costs: what they cost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        table.to_parquet(temporary, index=False)
        # The JSON first: scores without their cost would be taken for a file of the user's own.
        write_json(beside(path), {**facts, "cost": total([asdict(cost) for cost in costs])})


def preparation(files: Mapping[str, str]) -> dict[str, Any] | None:
    """What was spent before training on the files that a run uses.

    Args:
        files: paths by the config key that names them.

    Returns:
        Examples, tokens and seconds in all, and the parts, each with the key and file it belongs to; None without
        files. A file without its JSON counts nothing, is warned of, and is listed under ``unknown``.

    Raises:
        ValueError: the JSON beside a file is not what ``python -m winnow.score`` writes.
    """
    if not files:
        return None
    parts: list[dict[str, Any]] = []
    unknown = []
    for key, name in files.items():
        path = beside(Path(name))
        if not path.is_file():
            log.warning("%s=%s: there is no %s beside it, so what it cost to make is not counted", key, name, path.name)
            unknown.append(name)
            continue
        try:
            cost = json.loads(path.read_text(encoding="utf-8"))["cost"]
            parts += [{**part, "key": key, "file": name} for part in total(cost["parts"])["parts"]]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is not what python -m winnow.score writes beside {key}={name}: {error}"
            ) from error
    return {**total(parts), "unknown": unknown}
