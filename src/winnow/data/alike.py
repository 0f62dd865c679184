"""What two examples are the same by."""

from __future__ import annotations

import hashlib

from winnow.data.example import Example
from winnow.data.splits import normalise


def digest(text: str) -> int:
    """A signed 64-bit number of a text, the same in every process.

    Args:
        text: any text.

    Returns:
        The number.
    """
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little", signed=True
    )


def content_of(example: Example) -> str:
    """What two examples are the same by: the prompt, or for plain text the response, case and white space levelled.

    Args:
        example: the example.

    Returns:
        The levelled text.
    """
    return normalise(example.prompt or example.response)
