"""Hidden labels of a stream."""

from __future__ import annotations

from winnow.data.example import Stream
from winnow.data.reach import SAMPLE, places
from winnow.data.rows import Listed


def groups(stream: Stream, seed: int = 0) -> tuple[set[str], bool]:
    """Hidden labels ``group`` of a stream.

    Args:
        stream: the candidates; all of a listed one, else the same sample as :func:`check_stream_fits`.
        seed: of the sample.

    Returns:
        Those found, and whether the whole stream was looked at.
    """
    listed = isinstance(stream, Listed)
    examples = stream.examples if isinstance(stream, Listed) else (stream[at] for at in places(stream.size, seed))
    whole = listed or (stream.size is not None and stream.size <= SAMPLE)
    return {example.labels.get("group", "") for example in examples} - {""}, whole
