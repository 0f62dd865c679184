"""Scores a pool of candidates against a target batch, under the optimizer's geometry."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from winnow.geometry import Geometry, geometry_of
from winnow.geometry.base import accumulation_dtype
from winnow.gradients.capture import Capture, CaptureError
from winnow.gradients.factors import Factor
from winnow.gradients.kept import KeptFactors
from winnow.gradients.layers import choose_parameters
from winnow.gradients.products import Products
from winnow.gradients.quiet import has_dropout, quiet
from winnow.gradients.target import TargetGradient
from winnow.gradients.verify import GradientMismatch, verify_gradients
from winnow.losses import IGNORE, Batch, example_losses, response_tokens
from winnow.selection import Selection
from winnow.signals import Needs, Signals
from winnow.update import weighted_backward

log = logging.getLogger(__name__)

VERIFIED_ROWS = 4


class TargetNotFinite(RuntimeError):
    """The target batch has no usable gradient at this step and none is stored to reuse."""


class Scorer:
    """Per-example losses, K, b and gradient norms of a pool, from one forward and one backward.

    Call it between optimizer steps, under the autocast context that training uses. Pool and target
    go through the model together; autograd computes no weight gradient; dropout is off; no global
    random generator, ``.grad``, ``requires_grad`` or training flag is changed.

    Args:
        model: a causal language model, wrapped by peft or not.
        optimizer: the optimizer that will make the next update, or a wrapper with ``.optimizer``.
        layers: parameters that take part in the geometry: ``all`` | ``linear`` | ``lora`` | ``last:N``
            | a regex; embeddings tied to the output layer only if a regex names them.
        geometry: ``auto`` reads the optimizer; ``identity`` is P = I; or a ``Geometry``.
        first_step: P before the optimizer has a state: ``pool`` | ``identity``.
        target_ema: decay of the average of target gradients over steps, in [0, 1).
        every: the target gradient is computed at every n-th call that needs it, reused in between.
        on_target_nan: ``skip`` raises ``TargetNotFinite`` when the target's loss or gradient is not
            finite; ``reuse`` takes the last good target gradient and raises only if there is none.
        verify: at the first backward, compare captured gradients with autograd's on a few candidates.
        update: ``one_pass`` holds the pool's factors until ``assign_update`` turns the weights into the
            update's gradient, for every trainable parameter; ``two_pass`` leaves the gradient to a second
            forward and backward of the caller; ``auto`` is one pass where it gives the same gradient,
            and logs once why it is not.
        reduction: ``mean`` | ``sum`` over an example's response tokens.
        chunk_elements: per-example gradients are formed at most this many numbers at a time.

    Raises:
        ValueError: an argument is out of range, ``layers`` matches nothing, or the optimizer is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        layers: str = "all",
        geometry: str | Geometry = "auto",
        first_step: str = "pool",
        target_ema: float = 0.0,
        every: int = 1,
        on_target_nan: str = "skip",
        verify: bool = True,
        reduction: str = "mean",
        update: str = "two_pass",
        chunk_elements: int = 2**23,
    ) -> None:
        if on_target_nan not in ("skip", "reuse"):
            raise ValueError(f"on_target_nan must be 'skip' or 'reuse' (scoring.on_target_nan), got {on_target_nan!r}")
        if update not in ("one_pass", "two_pass", "auto"):
            raise ValueError(f"update must be 'one_pass', 'two_pass' or 'auto' (scoring.update), got {update!r}")
        self.model = model
        self.geometry = geometry_of(optimizer, geometry, first_step)
        self.parameters = choose_parameters(model, layers)
        self.target = TargetGradient(target_ema, every, keep=on_target_nan == "reuse")
        self.on_target_nan, self.reduction, self.chunk_elements = on_target_nan, reduction, chunk_elements
        self.update = update
        self.target_loss: Tensor | None = None
        """Weighted mean loss of the last target batch, detached; None if the last call ran none."""
        self.target_reused = False
        """Whether the last call took the stored target gradient because the new one was not finite."""
        self._unverified = verify
        self._trainable = {name: held for name, held in model.named_parameters() if held.requires_grad}
        self._kept: KeptFactors | None = None
        self._refusal: str | None = None

    @property
    def target_due(self) -> bool:
        """Whether the next call that needs a target has to be given a target batch."""
        return self.target.due

    def __call__(
        self,
        pool: Batch,
        target: Batch | None,
        needs: Needs,
        target_weight: Float[Tensor, " target"] | None = None,
    ) -> Signals:
        """Score a pool.

        Args:
            pool: B candidates: ``input_ids``, ``attention_mask``, ``labels``.
            target: M examples; None where ``needs.target`` is false or ``target_due`` is false.
            needs: what to compute; nothing else is.
            target_weight: share of each target example in g*, for example one over the size of its
                task times the weight of the task; the mean over examples when omitted.

        Returns:
            The signals asked for. Rows of invalid candidates are zero in K, b and norms.

        Raises:
            TargetNotFinite: see ``on_target_nan``.
            ValueError: a target is due and not given, or has no response token.
        """
        tokens = response_tokens(pool)
        self.target_loss, self.target_reused, self._kept = None, False, None
        if not needs.forward:
            return Signals(valid=tokens > 0, tokens=tokens)
        if needs.backward:
            self._kept = self._keep()
        with quiet(self.model):
            if needs.backward:
                return self._backward(pool, target, needs, target_weight, tokens)
            with torch.no_grad():
                losses = example_losses(self.model, pool, self.reduction)
        return Signals(valid=(tokens > 0) & losses.isfinite(), tokens=tokens, losses=losses)

    @property
    def holds_update(self) -> bool:
        """Whether the last call kept what ``assign_update`` needs; if not, the update takes a second pass."""
        return self._kept is not None

    def weighted_gradients(self, selection: Selection) -> dict[str, Tensor]:
        """The update's gradient (1/k) sum_i w_i g_i from the factors of the last call.

        Args:
            selection: valid candidates of that call's pool, and their weights.

        Returns:
            Gradients by name of every trainable parameter that the loss reached.

        Raises:
            RuntimeError: the last call kept no factors.
        """
        return self._held().weighted(selection)

    def assign_update(self, selection: Selection, accumulate: bool = False) -> None:
        """Write the update's gradient to every trainable parameter's ``.grad`` and let go of the factors.

        Args:
            selection: valid candidates of the last call's pool, and their weights.
            accumulate: add to the gradients that are there, instead of replacing them.

        Raises:
            RuntimeError: the last call kept no factors, or they are used up.
        """
        self._held().assign(selection, accumulate)
        self._kept = None

    def backward(
        self, pool: Batch, selection: Selection, backward: Callable[[Tensor], None] = torch.Tensor.backward
    ) -> tuple[Selection, Float[Tensor, " pool"]]:
        """Add the update's gradient to ``.grad``, from the factors of the last call or else by a second pass.

        Args:
            pool: the pool of the last call.
            selection: valid candidates and their weights.
            backward: what a second pass calls with its loss; Lightning's ``manual_backward``, for example.

        Returns:
            What was really trained on, and the losses a second pass saw: see :func:`winnow.weighted_backward`.
        """
        if not self.holds_update:
            return weighted_backward(self.model, pool, selection, self.reduction, backward)
        self.assign_update(selection, accumulate=True)
        return selection, torch.full((len(pool["labels"]),), torch.nan, dtype=torch.float32)

    def _held(self) -> KeptFactors:
        if self._kept is None:
            raise RuntimeError(
                f"no factors are held for a one-pass update ({self._refusal or 'scoring.update=' + self.update}); "
                f"ask holds_update first, and make a second weighted pass if it is False"
            )
        return self._kept

    def _backward(
        self,
        pool: Batch,
        target: Batch | None,
        needs: Needs,
        target_weight: Tensor | None,
        tokens: Tensor,
    ) -> Signals:
        due = needs.target and self.target.due
        if due and target is None:
            raise ValueError("this call has to compute the target gradient: give it a target batch")
        weight = None
        if due:
            assert target is not None
            weight = _target_weight(target, target_weight)
        try:
            losses, products = self._score(pool, target if due else None, weight, needs, tokens > 0)
        except TargetNotFinite:
            self.target.discard()
            if self.on_target_nan == "skip" or not self.target.stored:
                raise
            due, self.target_reused = False, True
            losses, products = self._score(pool, None, None, needs, tokens > 0)
        except CaptureError as error:
            self.target.discard()
            if self._kept is None or self.update != "auto":
                raise
            self._refuse(str(error))
            return self._backward(pool, target, needs, target_weight, tokens)
        if due:
            self.target.commit()
        elif needs.target:
            self.target.reuse()
        valid = (tokens > 0) & losses.isfinite() & _finite(products, len(tokens))
        if self._unverified and bool(valid.any()):
            rows = valid.nonzero().squeeze(1)[:VERIFIED_ROWS]
            self._verify({key: pool[key][rows] for key in ("input_ids", "attention_mask", "labels")})
        gram, norms = products.gram, products.norms
        return Signals(
            valid=valid,
            tokens=tokens,
            losses=losses if needs.losses else None,
            alignment=None if products.alignment is None else torch.where(valid, products.alignment, 0),
            gram=None if gram is None else torch.where(valid[:, None] & valid, gram, 0),
            norms=None if norms is None else torch.where(valid, norms, 0),
        )

    def _verify(self, few: Batch) -> None:
        if self._kept is not None:
            try:
                verify_gradients(self.model, self._trainable, few, self.reduction)
            except (GradientMismatch, CaptureError) as error:
                if self.update != "auto":
                    raise
                self._refuse(str(error))
        if self._kept is None:
            verify_gradients(self.model, self.parameters, few, self.reduction)
        self._unverified = False

    def _refuse(self, reason: str) -> None:
        self._kept, self._refusal = None, reason
        log.warning("the update takes a second pass over the kept candidates (scoring.update=auto): %s", reason)

    def _keep(self) -> KeptFactors | None:
        if self.update == "two_pass" or self._refusal is not None:
            return None
        if has_dropout(self.model):
            reason = "scoring is without dropout and training is not, so their gradients differ"
            if self.update == "one_pass":
                raise ValueError(f"scoring.update=one_pass is not possible: {reason}; use two_pass or auto")
            self._refuse(reason)
            return None
        return KeptFactors(self._trainable)

    def _score(
        self,
        pool: Batch,
        target: Batch | None,
        weight: Float[Tensor, " target"] | None,
        needs: Needs,
        present: Bool[Tensor, " pool"],
    ) -> tuple[Float[Tensor, " pool"], Products]:
        size = len(present)
        batch = pool if target is None else concatenate(pool, target)
        total, length = batch["input_ids"].shape
        products: Products | None = None
        share = torch.empty(0)

        def add(name: str, factor: Factor) -> None:
            nonlocal products
            if self._kept is not None:
                self._kept.add(name, factor.examples(slice(0, size)))
            if name not in self.parameters:
                return
            wide = accumulation_dtype(factor.dtype)
            if products is None:
                products = Products(needs, size, factor.dtype, present.device, self.chunk_elements)
            candidates = factor.examples(slice(0, size)).to(wide)
            parameter = self.parameters[name]
            preconditioner = self.geometry.preconditioner(parameter, name, lambda: candidates.combine(share))
            tau = None
            if needs.target:
                if weight is None:
                    tau = self.target.read(name)
                else:
                    tau = self.target.stage(
                        name,
                        factor.examples(slice(size, total)).to(wide).combine(weight),
                    )
                momentum = self.geometry.momentum(parameter, name) if needs.momentum else None
                tau = torch.zeros(factor.shape, dtype=wide, device=present.device) if tau is None else tau
                tau = tau if momentum is None else tau - momentum.to(tau.dtype)
            products.add(candidates, preconditioner, tau)

        wanted = self.parameters if self._kept is None else self._trainable
        with torch.enable_grad(), Capture(self.model, wanted, total, length, add) as capture:
            losses = example_losses(self.model, batch, self.reduction)
            valid = losses.detach().isfinite()
            if weight is not None:
                self._check_target(losses.detach()[size:], weight)
                valid[size:] &= weight > 0
            share = valid[:size].double() / valid[:size].sum().clamp_min(1)
            if bool(valid.any()):
                capture.backward(torch.where(valid, losses, 0).sum(), valid)
        losses = losses.detach()[:size]
        if products is None:
            products = Products(needs, size, losses.dtype, present.device, self.chunk_elements)
        if weight is not None and products.alignment is not None:
            reached = valid[:size]
            if bool(reached.any()) and not bool(products.alignment[reached].isfinite().any()):
                raise TargetNotFinite("the target gradient is not finite")
        return losses, products

    def _check_target(self, losses: Float[Tensor, " target"], weight: Float[Tensor, " target"]) -> None:
        loss = torch.where(weight > 0, losses * weight, 0).sum()
        self.target_loss = loss
        if not bool(loss.isfinite()):
            raise TargetNotFinite(f"the loss of the target batch is {float(loss)}")

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: tensors and plain integers only.

        Returns:
            The stored target gradient and its counters.
        """
        return {"target": self.target.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; scoring goes on bit for bit as if it had never stopped.

        Args:
            state: what ``state_dict`` gave.

        Raises:
            ValueError: the state belongs to other parameters.
        """
        strangers = set(state["target"]["gradients"]) - set(self.parameters)
        if strangers:
            raise ValueError(
                f"the checkpoint's target gradient has parameters that are not scored here: {sorted(strangers)[:3]}; "
                f"was scoring.layers changed?"
            )
        self.target.load_state_dict(state["target"])


def concatenate(first: Batch, second: Batch) -> dict[str, Tensor]:
    """Two batches as one, padded on the right to the longer of the two.

    Args:
        first: a batch.
        second: another.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` of both.
    """
    length = max(first["input_ids"].shape[1], second["input_ids"].shape[1])
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE}
    return {
        key: torch.cat([F.pad(batch[key], (0, length - batch[key].shape[1]), value=value) for batch in (first, second)])
        for key, value in fill.items()
    }


def _target_weight(target: Batch, weight: Tensor | None) -> Tensor:
    present = response_tokens(target) > 0
    if weight is None:
        weight = torch.ones(len(present), device=present.device)
    if weight.shape != present.shape or not bool((weight >= 0).all()):
        raise ValueError(
            f"target_weight must be one weight >= 0 for each of the {len(present)} target examples, "
            f"got {weight.tolist()}"
        )
    weight = torch.where(present, weight, 0).double()
    if not bool(weight.sum() > 0):
        raise ValueError("no example of the target batch has a response token and a positive weight")
    return weight / weight.sum()


def _finite(products: Products, size: int) -> Tensor:
    found = [
        products.alignment,
        products.norms,
        None if products.gram is None else torch.diagonal(products.gram),
    ]
    finite = [values.isfinite() for values in found if values is not None]
    return torch.stack(finite).all(0)
