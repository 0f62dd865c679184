"""Parts of splits that are tables or lists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from winnow.data.alike import content_of, digest
from winnow.data.example import Example
from winnow.data.table import ExampleTable


def contents(examples: Sequence[Example]) -> np.ndarray:
    """Digests of what examples are the same by.

    Args:
        examples: any sequence.

    Returns:
        As many 64-bit numbers.
    """
    if isinstance(examples, ExampleTable):
        return examples.numbers("content")
    return np.array([digest(content_of(example)) for example in examples], dtype=np.int64)


def only(examples: Sequence[Example], keep: np.ndarray) -> Sequence[Example]:
    """The examples that a mask keeps.

    Args:
        examples: any sequence.
        keep: true where one stays.

    Returns:
        They, in order.
    """
    if keep.all():
        return examples
    if isinstance(examples, ExampleTable):
        return examples.chosen(np.flatnonzero(keep))
    return [example for example, stays in zip(examples, keep.tolist(), strict=True) if stays]


def place_of(examples: Sequence[Example], position: int) -> str:
    """Where an example stands, for messages.

    Args:
        examples: any sequence.
        position: in it.

    Returns:
        File and line where they are known, the id otherwise.
    """
    return examples.where(position) if isinstance(examples, ExampleTable) else f"example {examples[position].id!r}"
