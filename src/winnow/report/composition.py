"""What kept examples were made of, in one order everywhere: near to far from the target, then what was spoilt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from winnow.records.ledger import read

CLEAN = ("in", "near", "far")
SPOILT = ("wrong", "shuffled", "duplicate")
ORDER = (*CLEAN, *SPOILT)
Composition = Mapping[str, Mapping[str, Any]]


def ordered(names: Iterable[str]) -> list[str]:
    """Names of labels or sources, the known labels first and in their order, the others by name.

    Args:
        names: hidden labels (the noise of a spoilt example, the group of a clean one), or sources.

    Returns:
        Each name once.
    """
    return sorted(set(names), key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def shares(composition: Composition, count: str) -> dict[str, float]:
    """Shares that sum to one.

    Args:
        composition: as :func:`winnow.report.composition.composition` gives it.
        count: ``seen``, ``usable``, ``kept`` or ``weight``; of runs of earlier versions all that was seen is usable.

    Returns:
        The share of each label; zeros where nothing was counted.
    """
    earlier = {"usable": "seen"}  # runs of earlier versions
    counts = {name: float(row[count if count in row else earlier[count]]) for name, row in composition.items()}
    total = sum(counts.values())
    return {name: counts[name] / total if total else 0.0 for name in ordered(composition)}


def all_usable(composition: Composition) -> bool:
    """Whether everything that was seen could be chosen.

    Args:
        composition: as :func:`winnow.report.composition.composition` gives it.

    Returns:
        False if some candidates could not: no response token within ``max_length``, or no finite loss.
    """
    return all(row.get("usable", row["seen"]) == row["seen"] for row in composition.values())


def labelled(names: Iterable[str]) -> bool:
    """Whether a composition is by hidden label (else by source).

    Args:
        names: of its rows.

    Returns:
        True if one of the known labels is among them.
    """
    return any(name in ORDER for name in names)


def composition(path: Path, by: str | None = None) -> dict[str, dict[str, int | float]]:
    """What was seen and kept.

    Args:
        path: as for :func:`read`.
        by: a column; by default the hidden labels where the stream has them (the noise, or else the
            group), and the source where it has none.

    Returns:
        For each value, how many rows were ``seen``, could be chosen (``usable``) and were ``kept``, and their
        ``weight`` in all.
    """
    rows = read(path).to_pandas()
    if by is None:
        label = rows["noise"].where(rows["noise"].notna(), rows["group"])
        rows["of"] = label if label.notna().any() else rows["source"]
        by = "of"
    passed, valid = (rows[name].fillna(True).astype(bool) for name in ("passed", "valid"))  # earlier ones do not say
    rows["usable"] = passed & valid
    grouped = rows.assign(**{by: rows[by].fillna("-")}).groupby(by)
    sums = {name: grouped[name].sum() for name in ("usable", "kept", "weight")}
    table = pd.DataFrame({"seen": grouped.size(), **sums})
    return {
        str(name): {
            **{count: int(row[count]) for count in ("seen", "usable", "kept")},
            "weight": float(row["weight"]),
        }
        for name, row in table.iterrows()
    }
