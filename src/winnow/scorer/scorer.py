"""Scores a pool of candidates against a target batch, under the optimizer's geometry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from winnow.geometry import Geometry, IdentityGeometry, UnknownOptimizer, geometry_of
from winnow.gradients.capture import CaptureError
from winnow.lm.batch import TargetBatch
from winnow.lm.finite import likely_cause, not_finite
from winnow.lm.forward import Forward
from winnow.lm.layout import Batch, response_tokens, right_padded
from winnow.lm.quiet import quiet
from winnow.products.mode import Mode
from winnow.scorer.checks import Checks
from winnow.scorer.forward import facts, forward_signals
from winnow.scorer.meter import Meter
from winnow.scorer.one_pass import Update
from winnow.scorer.parameters import choose_parameters, leave_out
from winnow.scorer.pool_pass import PoolPass, signals_of
from winnow.scorer.reference import Reference
from winnow.scorer.scope import Scope
from winnow.scorer.target import TargetGradient, TargetNotFinite
from winnow.selection import Selection
from winnow.signals import Needs, Signals

__all__ = ["Scorer", "TargetNotFinite"]


class Scorer:
    """Per-example losses, K, b and gradient norms of a pool, from one forward and one backward.

    Call it between optimizer steps, under the autocast context that training uses. Pool and target
    go through the model together; autograd computes no weight gradient; dropout is off; no global
    random generator, ``.grad``, ``requires_grad`` or training flag is changed.

    Args:
        model: a causal language model, wrapped by peft or not.
        optimizer: the optimizer that will make the next update, or a wrapper with ``.optimizer``.
        layers: parameters that take part in the geometry: ``all`` | ``linear`` | ``lora`` | ``last:N`` | a regex;
            embeddings tied to the output layer only if a regex names them. The backward goes no deeper than they do.
        geometry: ``auto`` reads the optimizer; ``identity`` is P = I; or a ``Geometry``.
        first_step: P before the optimizer has a state: ``pool`` | ``identity``.
        target_ema: decay of the average of target gradients over steps, in [0, 1).
        every: the target gradient is computed at every n-th call that needs it, and reused in between; None for once.
        on_target_nan: ``skip`` raises ``TargetNotFinite`` when the target's loss or gradient is not finite; ``reuse``
            takes the last good target gradient and raises only if there is none.
        verify: at the first backward, compare captured gradients with autograd's on a few candidates.
        update: ``one_pass`` holds the pool's factors until ``assign_update`` turns the weights into the update's
            gradient, for every trainable parameter; ``two_pass`` leaves it to a second forward and backward of the
            caller; ``auto`` is one pass where it gives the same gradient, and logs once why it is not.
        reduction: ``mean`` | ``sum`` over an example's response tokens.
        mode: how K and b are taken, :class:`winnow.products.mode.Mode`: ``exact`` | ``ghost`` | ``sketch`` | ``auto``.
        sketch_dim: sketches project each side of a matrix to this length.
        sketch_seed: of the projections.
        pool_micro_batch: score target and pool at most this many examples at a time, for pools larger than memory: the
            target's gradient first, b exact against it, K from stored per-example gradients (``exact``), sketches
            (``sketch``), or whichever fits (``auto``). The update takes a second pass, in pieces too. None: at once.
        pack: lay the examples of a pass end to end in rows as long as the longest, in place of padding; the same
            numbers. Scoring refuses a model whose losses are then others, at the first pool; an update goes padded.
        chunk_elements: most numbers of per-example gradients formed at a time; None for 2^22 on a CPU, 2^26 elsewhere.
        reference: of rho_loss, loaded when it is first asked for: a model's folder or Hugging Face name, or a file
            with columns ``id`` and ``loss`` (.parquet, .csv, .jsonl).

    Raises:
        ValueError: an argument is out of range, or ``layers`` matches nothing.
    """

    # What runs pools over several processes replaces these.
    _updating: Callable[..., Update] = Update
    _passing: Callable[..., PoolPass] = PoolPass
    _checking: Callable[..., Checks] = Checks
    _forwarded: Callable[..., Signals] = staticmethod(forward_signals)

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        layers: str = "all",
        geometry: str | Geometry = "auto",
        first_step: str = "pool",
        target_ema: float = 0.0,
        every: int | None = 1,
        on_target_nan: str = "skip",
        verify: bool = True,
        reduction: str = "mean",
        update: str = "two_pass",
        mode: str = "exact",
        sketch_dim: int = 64,
        sketch_seed: int = 0,
        pool_micro_batch: int | None = None,
        pack: bool = False,
        chunk_elements: int | None = None,
        reference: str | None = None,
    ) -> None:
        if on_target_nan not in ("skip", "reuse"):
            raise ValueError(f"on_target_nan must be 'skip' or 'reuse' (scoring.on_target_nan), got {on_target_nan!r}")
        forward = Forward(model, reduction, pack)
        self._update = self._updating(forward, update, pool_micro_batch)
        self.model = model
        self._unknown: UnknownOptimizer | None = None
        self.geometry: Geometry = IdentityGeometry()  # what P^0 is under any optimizer
        try:
            self.geometry = geometry_of(optimizer, geometry, first_step)
        except UnknownOptimizer as error:
            self._unknown = error
        self.parameters = choose_parameters(model, layers)
        self.target = TargetGradient(target_ema, every, keep=on_target_nan == "reuse")
        self.on_target_nan, self.reduction, self.pool_micro_batch = on_target_nan, reduction, pool_micro_batch
        if chunk_elements is None:
            chunk_elements = 2**22 if next(model.parameters()).device.type == "cpu" else 2**26
        how = Mode(mode, sketch_dim, sketch_seed, chunk_elements)
        scope = Scope(forward, self.parameters, self.geometry, self.target, how)
        self._pass = self._passing(scope, pool_micro_batch)
        self._checks = self._checking(self._pass, self._update, layers, verify)
        self.target_reused = False
        """Whether the last call took the stored target gradient because the new one was not finite."""
        self._reference = Reference(reference, model)
        self.meter = Meter(self._pass, self._update, self._reference, optimizer)
        self._update.watch(getattr(optimizer, "optimizer", optimizer))

    @property
    def update(self) -> str:
        """How the update is made: ``one_pass`` | ``two_pass`` | ``auto``."""
        return self._update.how

    @property
    def target_loss(self) -> Float[Tensor, ""] | None:
        """Weighted mean loss of the last target batch, detached; None if the last call ran none."""
        return self._pass.scope.target_loss

    @property
    def packed_share(self) -> float | None:
        """Cells of the rows laid so far, over those of the same batches padded; None without ``pack``."""
        return self._pass.scope.forward.packed_share

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
        *,
        target_task: Int[Tensor, " target"] | None = None,
        meta: Mapping[str, Sequence[str]] | None = None,
    ) -> Signals:
        """Score a pool.

        Args:
            pool: B candidates: ``input_ids``, ``attention_mask`` and ``labels``, padded wherever.
            target: M examples; None where ``needs.target`` is false or ``target_due`` is false.
            needs: what to compute; nothing else is.
            target_weight: share of each target example in g*, for example one over the size of its
                task times the weight of the task; the mean over examples when omitted.
            target_task: number of each target example's task, from 0; one task when omitted.
            meta: facts about the candidates by name, of which those that ``needs.meta`` names are passed on.

        Returns:
            The signals asked for. Rows of invalid candidates are zero in K, b, norms and curvature.

        Raises:
            TargetNotFinite: see ``on_target_nan``.
            UnknownOptimizer: see :meth:`check`.
            ValueError: a target is due and not given, or has no response token; something that ``needs`` names is
                not there, or not to be had with ``mode`` or ``pool_micro_batch``; or a batch is not one.
        """
        self.meter.begin()
        given, pool = pool, right_padded(pool, "pool")
        target = None if target is None else right_padded(target, "target batch")
        run = needs.target_hidden or needs.curvature or (needs.target and self.target.due)
        weighed = TargetBatch.of(target, target_weight, target_task) if run and target is not None else None
        tokens = response_tokens(pool)
        self.check(needs)
        self.forget()
        extra: dict[str, Any] = {"meta": facts(needs, meta or {})}
        if needs.reference:
            extra["reference"] = self._referred(pool, (meta or {}).get("id"))
        if not needs.forward:
            return Signals(valid=tokens > 0, tokens=tokens, **extra)
        if needs.backward:
            self._update.begin(given)
        with quiet(self.model):
            if needs.backward:
                return replace(self._backward(pool, weighed, needs, tokens), **extra)
            with torch.no_grad():
                forward, size = self._pass.scope.forward, self.pool_micro_batch
                return replace(self._forwarded(forward, pool, weighed, needs, size), **extra)

    def forget(self) -> None:
        """Let go of the last pool: the next update is of one that is not scored."""
        self._pass.scope.target_loss, self.target_reused, self._update.held = None, False, None

    def _referred(self, pool: Batch, ids: Sequence[str] | None) -> Tensor:
        return self._reference(pool, ids, self.reduction)

    def check(self, needs: Needs) -> None:
        """Refuse, before any pool is scored, needs that cannot be met.

        Args:
            needs: what a selector needs.

        Raises:
            UnknownOptimizer: P or the momentum of an optimizer whose geometry is unknown.
            ValueError: something that is not to be had with ``mode`` or ``pool_micro_batch``.
        """
        if self._unknown is not None and needs.geometry:
            raise self._unknown
        self._pass.check(needs)

    @property
    def holds_update(self) -> bool:
        """Whether the last call kept what ``assign_update`` needs; if not, the update takes a second pass."""
        return self._update.held is not None

    def weighted_gradients(self, selection: Selection) -> dict[str, Tensor]:
        """The update's gradient (1/k) sum_i w_i g_i by parameter, from held factors; see :meth:`backward`."""
        return self._update.weighted(selection)

    def assign_update(self, selection: Selection, accumulate: bool = False) -> None:
        """Write that gradient to every trainable parameter's ``.grad``, and let go of the factors."""
        self._update.assign(selection, accumulate)

    def backward(
        self, pool: Batch, selection: Selection, backward: Callable[[Tensor], None] = torch.Tensor.backward
    ) -> tuple[Selection, Float[Tensor, " pool"]]:
        """Add the update's gradient to ``.grad``, from the factors of the last call or else by a second pass.

        A loop of one's own may instead ask ``holds_update`` and call ``assign_update``, which replaces ``.grad`` unless
        ``accumulate``, or take ``weighted_gradients``; both raise RuntimeError where no factors are held.

        Args:
            pool: the pool of the last call.
            selection: valid candidates and their weights.
            backward: what a second pass calls with its loss; Lightning's ``manual_backward``, for example.

        Returns:
            What was really trained on, and the losses a second pass saw: see :func:`winnow.weighted_backward`.

        Raises:
            RuntimeError: factors are held, and ``pool`` is another one, or it or the parameters have changed since.
            ValueError: factors are held, and the selection names candidates that are not valid.
        """
        return self._update.backward(pool, selection, backward)

    def _backward(self, pool: Batch, target: TargetBatch | None, needs: Needs, tokens: Tensor) -> Signals:
        due = needs.target and self.target.due
        if due and target is None:
            raise ValueError("this call has to compute the target gradient: give it a target batch")
        hvp = None
        if needs.curvature:
            hvp = self._pass.curvature(pool, tokens > 0, target)
        used = target if due else None
        try:
            losses, sums = self._pass(pool, used, needs, hvp=hvp, held=self._update.held)
        except TargetNotFinite as error:
            self._give_up_target(error)
            used = None
            losses, sums = self._pass(pool, used, needs, hvp=hvp, held=self._update.held)
        except CaptureError as error:
            self.target.discard()
            if self._update.held is not None and self.update == "auto":
                self._update.refuse(str(error))
            elif self._update.held is not None or not leave_out(self.parameters, error):
                raise
            return self._backward(pool, target, needs, tokens)
        if used is not None:
            self.target.commit()
        elif needs.target:
            self.target.reuse()
        present = (tokens > 0) & losses.isfinite()
        valid = present & sums.finite()
        self._checks(pool, used, present, valid, sums)
        if self._update.held is not None:
            self._update.held.valid = valid
        return signals_of(needs, losses, tokens, valid, sums)

    def _give_up_target(self, error: TargetNotFinite) -> None:
        """Fall back on the stored target gradient, or raise where there is none to fall back on."""
        self.target.discard()
        if self.on_target_nan == "reuse" and self.target.stored:
            self.target_reused = True
            return
        held = dict(self.model.named_parameters())
        half = any(parameter.dtype == torch.float16 for parameter in held.values())
        if half or not_finite(held.items()) is not None:  # no later batch will do better
            raise TargetNotFinite(f"{error}: {likely_cause(held)}") from error
        raise error

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: tensors and plain integers only.

        Returns:
            The stored target gradient and its counters.
        """
        return {"target": self.target.state_dict(), "tasks": self.target.tasks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; scoring goes on bit for bit as if it had never stopped.

        Args:
            state: what ``state_dict`` gave.

        Raises:
            ValueError: the state belongs to other parameters.
        """
        self.target.load_state_dict(state["target"], self.parameters)
        self.target.tasks = int(state.get("tasks", 0))
