"""Pools and target batches by step: a pure function of (seed, epoch, step), so that resume is exact."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from winnow.data.batch import collate
from winnow.data.encode import PLAIN, Encoding
from winnow.data.example import Corpus, Target
from winnow.data.look import Glass
from winnow.data.prepared import prepared
from winnow.data.reach import check_references_fit, check_stream_fits
from winnow.data.rows import Listed
from winnow.data.steps import Raw, StepData, StepSampler

log = logging.getLogger(__name__)


class SelectionDataModule(lightning.LightningDataModule):
    """Serves pools with their target batches to Lightning, resumable at any step.

    Args:
        corpus: stream of candidates and target tasks.
        tokenizer: the model's tokenizer.
        pool_size: candidates per step, B; ``data.pool_size``.
        target_batch_size: target examples per step, M; ``data.target_batch_size``.
        max_length: longest sequence in tokens; ``data.max_length``.
        seed: decides the order; ``seed``.
        num_workers: processes that tokenise ahead; 0 does it in the main process.
        packing: join documents into full rows, with loss on every token (pre-training).
        val_batch_size: examples per batch when the target NLL is measured.
        val_limit: examples per target whose NLL is watched during training; None for all.
        target_order: ``shared`` (every target in every target batch) | ``round_robin`` (one target per step).
        raw: candidates in front of a gate, ``data.draw_size`` of them a step; None for no gate.
        encoding: what carries loss, what is cut; None for the defaults.
        cache_dir: where what was seen of large splits is kept; None keeps nothing.

    Raises:
        ValueError: a size is not positive, a target split is empty, it or the stream has no response token within
            ``max_length``, or the stream is smaller than a pool.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        pool_size: int = 16,
        target_batch_size: int = 8,
        max_length: int = 256,
        seed: int = 0,
        num_workers: int = 0,
        packing: bool = False,
        val_batch_size: int = 32,
        val_limit: int | None = None,
        target_order: str = "shared",
        raw: Raw | None = None,
        encoding: Encoding | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if val_limit is not None and val_limit < 1:
            raise ValueError(f"data.val_limit must be at least 1, or null for all, got {val_limit}")
        if num_workers < 0:
            raise ValueError(f"data.num_workers must be at least 0, got {num_workers}")
        for name, value in {
            "pool_size": pool_size,
            "target_batch_size": target_batch_size,
            "max_length": max_length,
            "val_batch_size": val_batch_size,
        }.items():
            if value < 1:
                raise ValueError(f"data.{name} must be at least 1, got {value}")
        for target in corpus.targets:
            if not len(target.val) or not len(target.test):
                raise ValueError(f"target {target.name!r} has an empty val or test split (data.corpus)")
        cache = None if cache_dir is None else Path(cache_dir).expanduser()
        self.encoding = encoding or PLAIN
        corpus = prepared(corpus, Glass(tokenizer, max_length, self.encoding, cache))
        size, needed = corpus.stream.size, pool_size if raw is None else raw.size
        if size is not None and size < needed:
            asked = f"pool (data.pool_size={needed})" if raw is None else f"draw (data.draw_size={needed})"
            raise ValueError(f"the stream holds {size} examples, fewer than one {asked}")
        if not packing and not isinstance(corpus.stream, Listed):
            check_stream_fits(corpus.stream, tokenizer, max_length, seed)
        check_references_fit(corpus.targets, tokenizer)
        self.corpus, self.tokenizer = corpus, tokenizer
        self.num_workers, self.max_length = num_workers, max_length
        self.val_batch_size, self.val_limit = val_batch_size, val_limit
        self.steps = StepData(
            corpus, tokenizer, pool_size, target_batch_size, max_length, seed, packing, target_order, raw,
            self.encoding, checked=True,
        )  # fmt: skip
        for target, rows in zip(corpus.targets, self.steps.rows, strict=True):
            if rows > len(target.val):
                log.warning(
                    "target %s has %d validation examples, and every target batch %d of it: some are in it more "
                    "than once (data.target_batch_size)",
                    target.name, len(target.val), rows,
                )  # fmt: skip
        self.position = (0, 0)

    def train_dataloader(self) -> DataLoader:
        """Pools of the epoch, from the position a checkpoint left off at."""
        return DataLoader(
            self.steps,
            batch_size=None,
            sampler=StepSampler(self.steps.steps, self.position),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> list[DataLoader]:
        """One loader per target, over the validation examples its target batches are drawn from."""
        # A list is all a loader needs of a data set, whatever its type says.
        return [DataLoader(cast("Dataset", self.val_batches(t)), batch_size=None) for t in self.corpus.targets]

    def val_batches(self, target: Target) -> list[dict[str, torch.Tensor]]:
        """Token batches of a target's validation split, sorted by length so that little is padding.

        Args:
            target: one of the corpus's targets.

        Returns:
            Batches of at most ``val_batch_size`` rows.
        """
        examples = list(target.val)[: self.val_limit]
        rows = sorted((self.steps.encoded(example) for example in examples), key=lambda row: len(row.input_ids))
        size = self.val_batch_size
        return [collate(rows[at : at + size], self.steps.pad) for at in range(0, len(rows), size)]

    def state_dict(self) -> dict[str, Any]:
        """The next (epoch, step) to serve."""
        return {"position": list(self.position)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the saved position."""
        epoch, step = state_dict["position"]
        self.position = (int(epoch), int(step))
