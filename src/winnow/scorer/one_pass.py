"""The update that follows a scoring: from the factors it held, or by a second pass."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.lm.forward import Forward
from winnow.lm.layout import Batch
from winnow.lm.quiet import has_dropout
from winnow.scorer.held import HeldFactors
from winnow.scorer.update import backward_of
from winnow.selection import Selection

log = logging.getLogger(__name__)

UPDATES = ("one_pass", "two_pass", "auto")


class Update:
    """Holds a pool's factors where the update can be made of them, and makes it either way.

    Args:
        forward: the model as pools are scored.
        how: ``one_pass`` | ``two_pass`` | ``auto``.
        micro_batch: examples that go through the model at a time; None for all.

    Raises:
        ValueError: ``how`` is none of these, or asks for one pass where pieces hold no factors.
    """

    def __init__(self, forward: Forward, how: str, micro_batch: int | None) -> None:
        if how not in UPDATES:
            raise ValueError(f"update must be 'one_pass', 'two_pass' or 'auto' (scoring.update), got {how!r}")
        if micro_batch is not None and how == "one_pass":
            raise ValueError(
                f"scoring.pool_micro_batch={micro_batch} holds no factors of the whole pool, which "
                f"scoring.update=one_pass needs; set scoring.update to two_pass or auto, or "
                f"scoring.pool_micro_batch=null"
            )
        self.forward, self.how, self.micro_batch = forward, how, micro_batch
        self.trainable: Mapping[str, nn.Parameter] = {
            name: held for name, held in forward.model.named_parameters() if held.requires_grad
        }
        self.held: HeldFactors | None = None
        """Of the last call's pool; None where the update takes a second pass."""
        self.multiplications = 0.0
        """What the last update from held factors took."""
        self._refusal: str | None = None

    def begin(self, pool: Batch) -> None:
        """Get ready to hold the factors of a pool, where that is possible.

        Args:
            pool: the pool that is about to be scored, as the caller has it.

        Raises:
            ValueError: ``one_pass``, and the model has dropout.
        """
        self.held, self.multiplications = None, 0.0
        if self.how == "two_pass" or self._refusal is not None:
            return
        if self.micro_batch is not None:
            self._refusal = "scoring.pool_micro_batch holds no factors"
        elif has_dropout(self.forward.model):
            reason = "scoring is without dropout and training is not, so their gradients differ"
            if self.how == "one_pass":
                raise ValueError(f"scoring.update=one_pass is not possible: {reason}; use two_pass or auto")
            self.refuse(reason)
        else:
            self.held = self.holding(pool)

    def holding(self, pool: Batch) -> HeldFactors:
        """What holds the factors of a pool.

        Args:
            pool: the pool that is about to be scored.

        Returns:
            A holder of nothing so far.
        """
        return HeldFactors(self.forward.model, self.trainable, pool)

    def refuse(self, reason: str) -> None:
        """Take a second pass from now on, and say so once.

        Args:
            reason: why.
        """
        self.held, self._refusal = None, reason
        log.warning("the update takes a second pass over the kept candidates (scoring.update=auto): %s", reason)

    def watch(self, optimizer: Any) -> None:
        """Have held factors know of their optimizer's steps, for as long as there is the scorer.

        Args:
            optimizer: the one that makes the updates.
        """
        watched = weakref.ref(self)

        def stepped(*unused: Any) -> None:
            found = watched()
            if found is not None and found.held is not None:
                found.held.stepped = True

        if isinstance(optimizer, torch.optim.Optimizer):
            optimizer.register_step_post_hook(stepped)

    def weighted(self, selection: Selection) -> dict[str, Tensor]:
        """The gradient by parameter; see :meth:`winnow.scorer.Scorer.weighted_gradients`.

        Args:
            selection: valid candidates of the last pool, and their weights.

        Returns:
            Gradients by name of every trainable parameter that the loss reached.
        """
        return self._checked(selection).weighted(selection)

    def assign(self, selection: Selection, accumulate: bool = False, pool: Batch | None = None) -> None:
        """Write the gradient to ``.grad`` and let go of the factors.

        Args:
            selection: valid candidates of the last pool, and their weights.
            accumulate: add to the gradients that are there.
            pool: the pool that the caller means; None where it is not said.
        """
        held = self._checked(selection, pool)
        self.multiplications = held.cost(selection)
        held.assign(selection, accumulate)
        self.held = None

    def backward(
        self, pool: Batch, selection: Selection, backward: Callable[[Tensor], None]
    ) -> tuple[Selection, Float[Tensor, " pool"]]:
        """Add the gradient to ``.grad``, from held factors or else by a second pass.

        Args:
            pool: the pool of the last call.
            selection: valid candidates and their weights.
            backward: what a second pass calls with its loss.

        Returns:
            What was really trained on, and the losses a second pass saw.
        """
        if self.held is None:
            return self.second_pass(pool, selection, backward)
        self.assign(selection, accumulate=True, pool=pool)
        return selection, torch.full((len(pool["labels"]),), torch.nan, dtype=torch.float32)

    def second_pass(
        self, pool: Batch, selection: Selection, backward: Callable[[Tensor], None]
    ) -> tuple[Selection, Float[Tensor, " pool"]]:
        """Add the gradient to ``.grad`` by running the kept candidates again.

        Args:
            pool: the pool.
            selection: kept candidates and their weights.
            backward: what to call with the loss.

        Returns:
            What was really trained on, and the losses that were seen.
        """
        return backward_of(self.forward, pool, selection, backward, self.micro_batch)

    def _checked(self, selection: Selection, pool: Batch | None = None) -> HeldFactors:
        if self.held is None:
            raise RuntimeError(
                f"no factors are held for a one-pass update ({self._refusal or 'scoring.update=' + self.how}); "
                f"ask holds_update first, and make a second weighted pass if it is False"
            )
        self.held.check(selection, pool)
        return self.held
