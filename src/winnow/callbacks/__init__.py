"""Lightning callbacks: the run's records, W&B tables, the progress bar, and checkpoints that are whole or absent."""

from winnow.callbacks.checkpoint import AtomicCheckpointIO, LastCheckpoint
from winnow.callbacks.progress import Progress
from winnow.callbacks.records import Records
from winnow.callbacks.tables import WandbTables

__all__ = ["AtomicCheckpointIO", "LastCheckpoint", "Progress", "Records", "WandbTables"]
