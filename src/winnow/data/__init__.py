"""Streams of candidates, target tasks, and the batches a step is made of."""

from winnow.data.datamodule import SelectionDataModule
from winnow.data.encode import collate, encode
from winnow.data.example import Corpus, Example, Score, Stream, Target

__all__ = ["Corpus", "Example", "Score", "SelectionDataModule", "Stream", "Target", "collate", "encode"]
