"""What acts once, before training: scores of a whole stream, and what they cost."""

from winnow.offline.files import Cost, preparation, write_scores
from winnow.offline.stream import hold_target, score_stream, stream_needs

__all__ = ["Cost", "hold_target", "preparation", "score_stream", "stream_needs", "write_scores"]
