"""What acts once, before training: scores of a whole stream, and what they cost."""

from winnow.offline.stream import hold_target, score_stream, stream_needs
from winnow.records.preparation import Cost, preparation, write_scores

__all__ = ["Cost", "hold_target", "preparation", "score_stream", "stream_needs", "write_scores"]
