"""What went through a model: the shape of every pass, from which its cost follows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from winnow.lm.layout import Batch, response_mask

FORWARD, CAPTURED, TRAINED = "forward", "captured", "trained"
"""A forward alone; with a backward that hands over per-example gradients; with autograd's, weight gradients and all."""
SUMMED, CURVED = "summed", "curved"
"""With autograd's gradient of the scored parameters; with a derivative of that gradient, through both of them."""


@dataclass(frozen=True)
class Pass:
    """One pass of a batch.

    Args:
        kind: ``forward`` | ``captured`` | ``trained`` | ``summed`` | ``curved``.
        rows: of the batch.
        length: of a row, padding included.
        columns: positions of a row that logits are computed at.
        tokens: that are no padding.
        pairs: of cells of a row that attention is computed for; all of them if None.
    """

    kind: str
    rows: int
    length: int
    columns: int
    tokens: int
    pairs: int | None = None

    @staticmethod
    def kind_now() -> str:
        """A pass's kind where nobody says it: a forward, and a trained one where autograd is on."""
        return TRAINED if torch.is_grad_enabled() else FORWARD

    @classmethod
    def of(cls, batch: Batch, kind: str | None = None) -> Pass:
        """The pass that a padded batch makes, once its tokens are in front.

        Args:
            batch: the examples.
            kind: as above; by default a forward, and a trained one where autograd is on.

        Returns:
            Its shape.
        """
        if kind is None:
            kind = cls.kind_now()
        columns = int(response_mask(batch["labels"]).any(0).sum())
        rows, length = batch["input_ids"].shape
        return cls(kind, rows, length, max(columns, 1), int(batch["attention_mask"].sum()))
