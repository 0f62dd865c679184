"""A split without the rows that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from winnow.data.example import Example
from winnow.data.look import Looked
from winnow.data.parts import only, place_of
from winnow.data.rejects import BadRow, Rejects


def settle(examples: Sequence[Example], looked: Looked, key: str, rejects: Rejects) -> np.ndarray:
    """Refuse or leave out the rows that cannot be used.

    Args:
        examples: the split.
        looked: what was seen of it.
        key: its config key.
        rejects: takes the rows.

    Returns:
        True for each row that stays. [rows]

    Raises:
        BadRows: there are some, and ``data.on_bad_row`` is ``error``.
        ValueError: none is left.
    """
    faults = looked.columns["fault"]
    for row in np.flatnonzero(faults).tolist():
        rejects.add(key, place_of(examples, row), BadRow(*looked.faults[faults[row] - 1]))
    if faults.any():
        rejects.settle(key)
    keep: np.ndarray = faults == 0
    if not keep.any():
        raise ValueError(f"{key}: none of its {len(keep)} rows can be used; {_first(looked)}")
    return keep


def _first(looked: Looked) -> str:
    return str(BadRow(*looked.faults[0]))


def narrowed(examples: Sequence[Example], looked: Looked, keep: np.ndarray) -> tuple[Sequence[Example], Looked]:
    """A split and what was seen of it, without some rows.

    Args:
        examples: the split.
        looked: what was seen of it.
        keep: true for rows that stay. [rows]

    Returns:
        Both.
    """
    return only(examples, keep), Looked({name: column[keep] for name, column in looked.columns.items()}, looked.faults)
