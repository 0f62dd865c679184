"""Which split a prompt belongs to, decided by its content alone: the splits are disjoint whatever the seeds."""

from __future__ import annotations

import hashlib

SPLITS = {0: "val", 1: "test"}
BUCKETS = 16


def normalise(prompt: str) -> str:
    """A prompt with case and white space levelled, as compared between splits.

    Args:
        prompt: any text.

    Returns:
        The levelled text.
    """
    return " ".join(prompt.casefold().split())


def split_of(prompt: str) -> str:
    """The split a prompt belongs to: one sixteenth to val, one to test, the rest to the stream.

    Args:
        prompt: any text.

    Returns:
        ``val``, ``test`` or ``stream``.
    """
    bucket = hashlib.blake2b(normalise(prompt).encode(), digest_size=2).digest()[0] % BUCKETS
    return SPLITS.get(bucket, "stream")
