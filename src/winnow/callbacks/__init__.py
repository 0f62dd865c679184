"""Lightning callbacks: the run's records, W&B tables, and checkpoints that are whole or absent."""

from winnow.callbacks.checkpoint import AtomicCheckpointIO
from winnow.callbacks.records import Records

__all__ = ["AtomicCheckpointIO", "Records"]
