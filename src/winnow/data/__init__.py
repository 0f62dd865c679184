"""Streams of candidates, target tasks, and the batches a step is made of."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from winnow.data.encode import encode
from winnow.data.example import Corpus, Example, Score, Stream, Target

if TYPE_CHECKING:
    from winnow.data.batch import collate
    from winnow.data.datamodule import SelectionDataModule
else:
    # A process that only checks rows must not load PyTorch and Lightning, which take most of its memory.
    _LATER = {"collate": "batch", "SelectionDataModule": "datamodule"}

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = ["Corpus", "Example", "Score", "SelectionDataModule", "Stream", "Target", "collate", "encode"]
