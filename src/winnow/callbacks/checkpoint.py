"""Checkpoints written whole or not at all."""

from __future__ import annotations

import os
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the final name and renames, so that a kill never leaves a broken checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save a checkpoint atomically.

        Args:
            checkpoint: what Lightning wants saved.
            path: final path.
            storage_options: as in Lightning.
        """
        temporary = f"{path}.tmp"
        super().save_checkpoint(checkpoint, temporary, storage_options)
        os.replace(temporary, path)
