"""Examples laid end to end in rows, in place of padding, with their losses and where their tokens went."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from winnow.lm.layout import Batch
from winnow.lm.losses import forward_parameters
from winnow.lm.nll import IGNORE, token_nll

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest difference of a loss, relative to the largest loss, that rounding may make."""


class PackingError(ValueError):
    """A model's losses of packed examples are not those of the examples alone."""


@dataclass(frozen=True)
class Packing:
    """A batch in rows.

    Args:
        input_ids: the rows; 0 behind a row's last example.
        position_ids: from 0 in every example, and again from 0 behind the last one.
        labels: of the *next* token of the same example, -100 where there is none.
        owner: the example of each cell, any where its label is -100.
        place: flat cell of each example's tokens in order, -1 where an example is shorter than the longest.
        columns: where some row has a label; logits are computed there alone.
        responses: flat cell among those columns of each labelled position of an example, -1 as above.
    """

    input_ids: Int[Tensor, "rows length"]
    position_ids: Int[Tensor, "rows length"]
    labels: Int[Tensor, "rows length"]
    owner: Int[Tensor, "rows length"]
    place: Int[Tensor, "batch tokens"]
    columns: Int[Tensor, " columns"]
    responses: Int[Tensor, "batch labelled"]

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor's dimensions are those of the rows.

        Args:
            tensor: something a module took or gave.

        Returns:
            True for [rows, length, ...], [rows, columns, ...], [rows, heads, length, ...] and [rows * length, ...].
        """
        return self._layout(tensor) is not None

    def ambiguous(self, tensor: Tensor) -> bool:
        """Whether it cannot be told which dimension of a tensor is that of the tokens.

        Args:
            tensor: something a module took or gave.

        Returns:
            True for [rows, length, length, ...].
        """
        rows, length = self.input_ids.shape
        return tensor.ndim >= 4 and tensor.shape[:3] == (rows, length, length)

    def split(self, tensor: Tensor) -> tuple[Tensor, bool]:
        """A tensor by rows as one by example.

        Args:
            tensor: one that ``holds``.

        Returns:
            [batch, tokens, ...] with zeros behind shorter examples ([batch, labelled, ...] of a tensor over
            ``columns``, [batch, heads, tokens, ...] of one with heads), and whether it was [rows * length, ...].
        """
        layout = self._layout(tensor)
        if layout == "heads":
            return self.split(tensor.transpose(1, 2))[0].transpose(1, 2), False
        place = self.responses if layout == "columns" else self.place
        cells = tensor if layout == "flat" else tensor.flatten(0, 1)
        found = cells[place.clamp_min(0)]
        empty = (place < 0).view(*place.shape, *[1] * (found.ndim - 2))
        return found.masked_fill(empty, 0), layout == "flat"

    def _layout(self, tensor: Tensor) -> str | None:
        rows, length = self.input_ids.shape
        if tensor.ndim >= 2 and tensor.shape[0] == rows:
            if tensor.shape[1] == length:
                return "tokens"
            if tensor.ndim >= 4 and tensor.shape[2] == length:
                return "heads"
            if tensor.shape[1] == len(self.columns):
                return "columns"
        return "flat" if tensor.ndim and tensor.shape[0] == rows * length else None

    def losses(self, model: nn.Module, reduction: str) -> Float[Tensor, " batch"]:
        """Negative log-likelihood of each example's response tokens; see :func:`winnow.lm.losses.example_losses`.

        Args:
            model: a causal language model that keeps packed examples apart by ``position_ids``.
            reduction: ``mean`` | ``sum`` over an example's response tokens.

        Returns:
            One loss per example; NaN for one without response tokens.

        Raises:
            PackingError: the model takes no ``position_ids``.
        """
        accepted = forward_parameters(model)
        if "position_ids" not in accepted:
            raise PackingError(
                f"{type(model).__name__} takes no position_ids, by which packed examples are kept apart; set "
                f"scoring.pack=false"
            )
        inputs: dict[str, Any] = {"input_ids": self.input_ids, "position_ids": self.position_ids}
        if "use_cache" in accepted:
            inputs["use_cache"] = False
        if "logits_to_keep" in accepted:
            logits = model(**inputs, logits_to_keep=self.columns).logits
        else:
            logits = model(**inputs).logits[:, self.columns]
        nll = token_nll(logits, self.labels[:, self.columns])
        sums = nll.new_zeros(len(self.place)).index_add(0, self.owner[:, self.columns].flatten(), nll.flatten())
        count = (self.responses >= 0).sum(1)
        losses = sums / count.clamp_min(1) if reduction == "mean" else sums
        return torch.where(count > 0, losses, torch.nan)


def pack(batch: Batch, one_row: bool = False) -> Packing:
    """Lay a batch end to end in rows as long as its longest example, the longest examples first.

    Args:
        batch: ``input_ids``, ``attention_mask`` and ``labels``, padded wherever.
        one_row: all in one row, however long.

    Returns:
        The rows.
    """
    device = batch["labels"].device
    lengths = batch["attention_mask"].sum(1)
    sizes: list[int] = lengths.tolist()
    longest = max(1, *sizes)
    rows, starts, count = _fit(sizes, sum(sizes) if one_row else longest)
    length = max(1, sum(sizes)) if one_row else longest
    # Tokens of every example in order, wherever the padding was.
    order = (batch["attention_mask"] == 0).long().argsort(dim=1, stable=True)[:, :longest]
    step = torch.arange(longest, device=device)
    present = step < lengths[:, None]
    first = torch.tensor(rows, device=device) * length + torch.tensor(starts, device=device)
    place = torch.where(present, first[:, None] + step, -1)
    shifted = F.pad(batch["labels"].gather(1, order)[:, 1:], (0, 1), value=IGNORE)
    shifted = shifted.masked_fill(step >= lengths[:, None] - 1, IGNORE)
    cells = place[present]

    def lay(values: Tensor, fill: int | Tensor) -> Tensor:
        out = values.new_zeros(count * length) + fill
        out[cells] = values[present]
        return out.view(count, length)

    labels = lay(shifted, IGNORE)
    example = torch.arange(len(sizes), device=device)[:, None].expand(-1, longest)
    ends = torch.zeros(count, dtype=torch.long, device=device)
    ends.scatter_reduce_(0, torch.tensor(rows, device=device), torch.tensor(starts, device=device) + lengths, "amax")
    behind = (torch.arange(length, device=device) - ends[:, None]).clamp_min(0)
    columns = (labels != IGNORE).any(0).nonzero().squeeze(1)
    if len(columns) == 0:
        columns = columns.new_zeros(1)
    among = torch.full((length,), -1, device=device)
    among[columns] = torch.arange(len(columns), device=device)
    labelled = shifted != IGNORE
    answers = labelled.long().argsort(dim=1, descending=True, stable=True)[:, : max(1, int(labelled.sum(1).max()))]
    cell = place.gather(1, answers)
    responses = torch.where(
        labelled.gather(1, answers), cell // length * len(columns) + among[cell.clamp_min(0) % length], -1
    )
    return Packing(
        lay(batch["input_ids"].gather(1, order), 0),
        lay(step.expand(len(sizes), -1), behind.flatten()),
        labels,
        lay(example, 0),
        place,
        columns,
        responses,
    )


def needs_one_row(model: nn.Module) -> bool:
    """Whether the model's attention keeps packed examples apart in a batch of one row only.

    Args:
        model: a Hugging Face model.

    Returns:
        True for flash attention, which is given the examples' lengths.
    """
    return "flash" in str(getattr(getattr(model, "config", None), "_attn_implementation", ""))


def check(model: nn.Module, alone: Float[Tensor, " batch"], packed: Float[Tensor, " batch"]) -> None:
    """Refuse a model that lets packed examples see one another.

    Args:
        model: the model.
        alone: losses of a padded batch.
        packed: losses of the same examples, packed.

    Raises:
        PackingError: they differ by more than rounding.
    """
    both = alone.isfinite() & packed.isfinite()
    if not bool(both.any()):
        return
    precision = next(model.parameters()).dtype
    if torch.is_autocast_enabled(alone.device.type):
        precision = torch.get_autocast_dtype(alone.device.type)
    error = float((packed - alone)[both].abs().max() / alone[both].abs().max().clamp_min(1e-30))
    if error > TOLERANCE[precision]:
        config: Any = getattr(model, "config", None)
        raise PackingError(
            f"packed examples have other losses than alone, by {error:.2g} of the largest: {type(model).__name__} with "
            f"attention {getattr(config, '_attn_implementation', 'unknown')!r} does not keep examples apart by "
            f"position_ids; set scoring.pack=false"
        )


def _fit(sizes: Sequence[int], length: int) -> tuple[list[int], list[int], int]:
    """Best fit, longest first: row and start of every example, and how many rows there are."""
    rows, starts = [0] * len(sizes), [0] * len(sizes)
    room: list[tuple[int, int]] = []
    count = 0
    for example in sorted(range(len(sizes)), key=lambda at: -sizes[at]):
        at = bisect_left(room, (sizes[example], -1))
        if at < len(room):
            free, row = room.pop(at)
        else:
            free, row, count = length, count, count + 1
        rows[example], starts[example] = row, length - free
        insort(room, (free - sizes[example], row))
    return rows, starts, max(1, count)
