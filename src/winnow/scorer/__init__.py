"""A pool and a target batch to signals, and the update that follows."""

from winnow.scorer.scorer import Scorer, TargetNotFinite

__all__ = ["Scorer", "TargetNotFinite"]
