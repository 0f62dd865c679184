"""A model's forward, of pools, targets, updates and evaluations: padded, or in rows where that saves anything."""

from __future__ import annotations

import logging

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.lm.layout import Batch, response_tokens, right_padded
from winnow.lm.losses import example_losses
from winnow.lm.packing import Packing, PackingError, check, needs_one_row, pack
from winnow.lm.passes import Pass
from winnow.lm.quiet import quiet

log = logging.getLogger(__name__)


class Forward:
    """A model, how its losses are reduced, and how its batches are laid.

    Args:
        model: a causal language model.
        reduction: ``mean`` | ``sum`` over an example's response tokens.
        packed: lay the examples end to end in rows where that saves padding.

    Raises:
        ValueError: ``reduction`` is neither.
    """

    def __init__(self, model: nn.Module, reduction: str = "mean", packed: bool = False) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum' (scoring.reduction), got {reduction!r}")
        self.model, self.reduction, self.packed = model, reduction, packed
        self.together = False
        """Whether other processes hold parts of the model: a backward is then run even where nothing is to be had."""
        self.passes: list[Pass] = []
        """What went through the model since the list was last cleared."""
        self._unchecked = packed
        self._padded_tokens = self._packed_tokens = 0

    @property
    def packed_share(self) -> float | None:
        """Cells of the rows laid so far, over those of the same batches padded; None where nothing is laid in rows."""
        return self._packed_tokens / self._padded_tokens if self._padded_tokens else None

    def losses(self, batch: Batch, kind: str | None = None) -> Float[Tensor, " batch"]:
        """Losses of a batch in rows of padding.

        Args:
            batch: the examples, padded wherever.
            kind: of the pass, as :class:`winnow.lm.passes.Pass` has it.

        Returns:
            See :func:`winnow.lm.losses.example_losses`.
        """
        batch = right_padded(batch)
        self.passes.append(Pass.of(batch, kind))
        return example_losses(self.model, batch, self.reduction)

    def laid_losses(self, batch: Batch, kind: str | None = None) -> Float[Tensor, " batch"]:
        """Losses of a batch in rows, or padded where that saves nothing, a loss is not finite, or the model mixes rows.

        A loss that is not finite may have spoilt its neighbours in the row. A model that does not keep packed examples
        apart goes padded from then on, and the log says why.

        Args:
            batch: the examples, padded wherever.
            kind: of the pass, as :class:`winnow.lm.passes.Pass` has it.

        Returns:
            See :func:`winnow.lm.losses.example_losses`.
        """
        batch = right_padded(batch)
        try:
            rows = self.rows(batch)
        except PackingError as error:
            log.warning("batches stay padded: %s", error)
            self.packed, rows = False, None
        if rows is None:
            return self.losses(batch, kind)
        losses = self.packed_losses(rows, Pass.kind_now() if kind is None else kind)
        spoilt = ~losses.isfinite() & (response_tokens(batch) > 0)
        return self.losses(batch, kind) if bool(spoilt.any()) else losses

    def packed_losses(self, rows: Packing, kind: str) -> Float[Tensor, " batch"]:
        """Losses of a batch laid in rows.

        Args:
            rows: from :meth:`rows`.
            kind: of the pass.

        Returns:
            See :meth:`winnow.lm.packing.Packing.losses`.
        """
        height, length = rows.input_ids.shape
        self.passes.append(Pass(kind, height, length, len(rows.columns), int((rows.place >= 0).sum())))
        return rows.losses(self.model, self.reduction)

    def rows(self, batch: Batch) -> Packing | None:
        """Lay a batch in rows, if that is asked for and saves anything; the first time, compare the losses.

        Args:
            batch: the examples.

        Returns:
            The rows; None to leave the batch padded.

        Raises:
            PackingError: the model does not keep packed examples apart.
        """
        if not self.packed:
            return None
        rows, padded = pack(batch, needs_one_row(self.model)), batch["input_ids"].numel()
        if rows.input_ids.numel() >= padded:
            self._padded_tokens += padded
            self._packed_tokens += padded
            return None
        if self._unchecked:
            with torch.no_grad(), quiet(self.model):
                check(
                    self.model,
                    example_losses(self.model, batch, self.reduction),
                    rows.losses(self.model, self.reduction),
                )
            self._unchecked = False
            log.info("scoring.pack: rows of %d tokens in place of %d padded", rows.input_ids.numel(), padded)
        self._padded_tokens += padded
        self._packed_tokens += rows.input_ids.numel()
        return rows
