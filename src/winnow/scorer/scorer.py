"""Scores a pool of candidates against a target batch, under the optimizer's geometry."""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from winnow.geometry import Geometry, IdentityGeometry, UnknownOptimizer, geometry_of
from winnow.gradients.capture import CaptureError
from winnow.gradients.verify import GradientMismatch, share_left_out, verify_gradients
from winnow.lm.batch import target_shares
from winnow.lm.finite import likely_cause, not_finite
from winnow.lm.layout import KEYS, Batch, response_tokens, right_padded
from winnow.lm.quiet import has_dropout, quiet
from winnow.products.mode import Method
from winnow.products.products import Products
from winnow.scorer.curvature import scored_curvature
from winnow.scorer.doubts import doubts
from winnow.scorer.forward import forward_signals
from winnow.scorer.held import KeptFactors
from winnow.scorer.parameters import choose_parameters
from winnow.scorer.pool_pass import TASK, PoolPass, TargetNotFinite
from winnow.scorer.reference import ReferenceModel, ReferenceTable, load_reference
from winnow.scorer.target import TargetGradient
from winnow.scorer.update import weighted_backward
from winnow.selection import Selection
from winnow.signals import Needs, Signals

log = logging.getLogger(__name__)

VERIFIED_ROWS = 4

__all__ = ["Scorer", "TargetNotFinite"]


class Scorer:
    """Per-example losses, K, b and gradient norms of a pool, from one forward and one backward.

    Call it between optimizer steps, under the autocast context that training uses. Pool and target
    go through the model together; autograd computes no weight gradient; dropout is off; no global
    random generator, ``.grad``, ``requires_grad`` or training flag is changed.

    Args:
        model: a causal language model, wrapped by peft or not.
        optimizer: the optimizer that will make the next update, or a wrapper with ``.optimizer``.
        layers: parameters that take part in the geometry: ``all`` | ``linear`` | ``lora`` | ``last:N``
            | a regex; embeddings tied to the output layer only if a regex names them. The first backward logs
            what K and b of them take.
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
        mode: how K and b are taken: ``exact`` | ``ghost`` | ``sketch`` | ``auto``; see
            :class:`winnow.products.mode.Method`.
        sketch_dim: sketches project each side of a matrix to this length.
        sketch_seed: of the projections.
        pool_micro_batch: score target and pool at most this many examples at a time, for pools larger
            than memory: the target's gradient first, b exact against it, K from stored per-example
            gradients (``exact``), sketches (``sketch``), or whichever fits (``auto``). The update takes
            a second pass, in pieces too. None scores everything at once.
        pack: lay the examples of a pass end to end in rows as long as the longest, in place of padding; the
            same numbers. Refused, at the first pool, for a model whose losses are then others.
        chunk_elements: per-example gradients are formed at most this many numbers at a time; None for 2^22 on a
            CPU, where more only takes memory, and 2^26 elsewhere.
        reference: of rho_loss, loaded when it is first asked for: a model's folder or Hugging Face name, or a file
            with columns ``id`` and ``loss`` (.parquet, .csv, .jsonl).

    Raises:
        ValueError: an argument is out of range, or ``layers`` matches nothing.
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
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum' (scoring.reduction), got {reduction!r}")
        if update not in ("one_pass", "two_pass", "auto"):
            raise ValueError(f"update must be 'one_pass', 'two_pass' or 'auto' (scoring.update), got {update!r}")
        if pool_micro_batch is not None and update == "one_pass":
            raise ValueError(
                f"scoring.pool_micro_batch={pool_micro_batch} holds no factors of the whole pool, which "
                f"scoring.update=one_pass needs; set scoring.update to two_pass or auto, or "
                f"scoring.pool_micro_batch=null"
            )
        self.model = model
        self.layers = layers
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
        method = Method(mode, sketch_dim, sketch_seed, chunk_elements)
        self._pass = PoolPass(
            model, self.parameters, self.geometry, self.target, method, reduction, pool_micro_batch, pack
        )
        self.update = update
        self.target_reused = False
        """Whether the last call took the stored target gradient because the new one was not finite."""
        self.reference = reference
        self._reference: ReferenceModel | ReferenceTable | None = None
        self._unverified, self._undescribed, self._doubted = verify, True, False
        self._trainable = {name: held for name, held in model.named_parameters() if held.requires_grad}
        self._tied = [name for name in self._trainable if name not in self.parameters] if layers == "all" else []
        self._unsaid = bool(self._tied)
        self._kept: KeptFactors | None = None
        self._refusal: str | None = None
        _watch(getattr(optimizer, "optimizer", optimizer), self)

    @property
    def target_loss(self) -> Float[Tensor, ""] | None:
        """Weighted mean loss of the last target batch, detached; None if the last call ran none."""
        return self._pass.target_loss

    @property
    def packed_share(self) -> float | None:
        """Cells of the rows laid so far, over those of the same batches padded; None without ``pack``."""
        padded = self._pass.padded_tokens
        return self._pass.packed_tokens / padded if padded else None

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
        given, pool = pool, right_padded(pool, "pool")
        target = None if target is None else right_padded(target, "target batch")
        tokens = response_tokens(pool)
        self.check(needs)
        self._pass.target_loss, self.target_reused, self._kept = None, False, None
        missing = [name for name in needs.meta if meta is None or name not in meta]
        if missing:
            raise ValueError(
                f"the selector needs {', '.join(missing)} of every candidate, which the stream does not give"
            )
        extra: dict[str, Any] = {"meta": {name: list((meta or {})[name]) for name in needs.meta}}
        if needs.reference:
            extra["reference"] = self._reference_losses(pool, None if meta is None else meta.get("id"))
        if not needs.forward:
            return Signals(valid=tokens > 0, tokens=tokens, **extra)
        if needs.backward:
            self._kept = self._keep(given)
        with quiet(self.model):
            if needs.backward:
                return replace(self._backward(pool, target, needs, target_weight, target_task, tokens), **extra)
            with torch.no_grad():
                found = forward_signals(
                    self.model, pool, target, needs, target_weight, tokens, self.reduction, self.pool_micro_batch
                )
        return replace(found, **extra)

    def check(self, needs: Needs) -> None:
        """Refuse before any pool is scored what could not be computed.

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
        return self._kept is not None

    def weighted_gradients(self, selection: Selection) -> dict[str, Tensor]:
        """The update's gradient (1/k) sum_i w_i g_i from the factors of the last call.

        Args:
            selection: valid candidates of that call's pool, and their weights.

        Returns:
            Gradients by name of every trainable parameter that the loss reached.

        Raises:
            RuntimeError: the last call kept no factors, or pool or parameters have changed since.
            ValueError: the selection names candidates that are not valid.
        """
        return self._held(selection).weighted(selection)

    def assign_update(self, selection: Selection, accumulate: bool = False) -> None:
        """Write the update's gradient to every trainable parameter's ``.grad`` and let go of the factors.

        Args:
            selection: valid candidates of the last call's pool, and their weights.
            accumulate: add to the gradients that are there, instead of replacing them.

        Raises:
            RuntimeError: the last call kept no factors, they are used up, or pool or parameters have changed since.
            ValueError: the selection names candidates that are not valid.
        """
        self._held(selection).assign(selection, accumulate)
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

        Raises:
            RuntimeError: factors are held, and ``pool`` is another one, or it or the parameters have changed since.
            ValueError: factors are held, and the selection names candidates that are not valid.
        """
        if not self.holds_update:
            return weighted_backward(self.model, pool, selection, self.reduction, backward, self.pool_micro_batch)
        self._held(selection, pool).assign(selection, accumulate=True)
        self._kept = None
        return selection, torch.full((len(pool["labels"]),), torch.nan, dtype=torch.float32)

    def _held(self, selection: Selection, pool: Batch | None = None) -> KeptFactors:
        if self._kept is None:
            raise RuntimeError(
                f"no factors are held for a one-pass update ({self._refusal or 'scoring.update=' + self.update}); "
                f"ask holds_update first, and make a second weighted pass if it is False"
            )
        self._kept.check(selection, pool)
        return self._kept

    def _reference_losses(self, pool: Batch, ids: Sequence[str] | None) -> Float[Tensor, " pool"]:
        if self.reference is None:
            raise ValueError(
                "the selector compares with a reference model and none is named: set scoring.reference to a model's "
                "folder or Hugging Face name, or to a file of losses by id (.parquet, .csv, .jsonl)"
            )
        if self._reference is None:
            self._reference = load_reference(self.reference, self.model)
        return self._reference(pool, ids, self.reduction)

    def _backward(
        self,
        pool: Batch,
        target: Batch | None,
        needs: Needs,
        target_weight: Tensor | None,
        target_task: Tensor | None,
        tokens: Tensor,
    ) -> Signals:
        due = needs.target and self.target.due
        if due and target is None:
            raise ValueError("this call has to compute the target gradient: give it a target batch")
        weight = None
        if due:
            assert target is not None
            weight = target_shares(target, target_weight)
        task = None
        if weight is not None and needs.per_task:
            task = torch.zeros_like(weight, dtype=torch.long) if target_task is None else target_task.to(tokens.device)
        bend = None
        if needs.curvature:
            bend = scored_curvature(
                self.model, self.parameters, pool, tokens > 0, target, target_weight, self.reduction
            )
        try:
            losses, products = self._pass(
                pool, target if due else None, weight, needs, task=task, bend=bend, kept=self._kept
            )
        except TargetNotFinite as error:
            self.target.discard()
            if self.on_target_nan == "skip" or not self.target.stored:
                held = dict(self.model.named_parameters())
                half = any(parameter.dtype == torch.float16 for parameter in held.values())
                if half or not_finite(held.items()) is not None:  # no later batch will do better
                    raise TargetNotFinite(f"{error}: {likely_cause(held)}") from error
                raise
            due, self.target_reused = False, True
            losses, products = self._pass(pool, None, None, needs, bend=bend, kept=self._kept)
        except CaptureError as error:
            self.target.discard()
            if self._kept is not None and self.update == "auto":
                self._refuse(str(error))
            elif self._kept is not None or not self._leave_out(error):
                raise
            return self._backward(pool, target, needs, target_weight, target_task, tokens)
        if due:
            self.target.commit()
        elif needs.target:
            self.target.reuse()
        valid = (tokens > 0) & losses.isfinite() & products.finite()
        if self._undescribed and self.pool_micro_batch is None:
            run = pool["input_ids"].numel() + (target["input_ids"].numel() if due and target is not None else 0)
            log.info("scoring.layers=%s: %s", self.layers, self._pass.work.describe(self.model, run))
            self._undescribed = False
        self._doubt((tokens > 0) & losses.isfinite(), products)
        if (self._unverified or self._unsaid) and bool(valid.any()):
            rows = valid.nonzero().squeeze(1)[: min(VERIFIED_ROWS, self.pool_micro_batch or VERIFIED_ROWS)]
            few = {key: pool[key][rows] for key in KEYS}
            if self._unsaid:
                self._say_left_out(few)
            if self._unverified:
                self._verify(few)
        if self._kept is not None:
            self._kept.valid = valid
        gram, norms = products.gram, products.norms
        return Signals(
            valid=valid,
            tokens=tokens,
            losses=losses if needs.losses else None,
            alignment=None if products.alignment is None else torch.where(valid, products.alignment, 0),
            gram=None if gram is None else torch.where(valid[:, None] & valid, gram, 0),
            norms=None if norms is None else torch.where(valid, norms, 0),
            curvature=None if products.curvature is None else torch.where(valid, products.curvature, 0),
            task_alignment=None if products.task_alignment is None else torch.where(valid, products.task_alignment, 0),
            task_norms=None if products.task_squares is None else products.task_squares.sqrt(),
        )

    def _leave_out(self, error: CaptureError) -> bool:
        """Take what cannot be captured out of the geometry; False if that leaves nothing, or is nothing."""
        # Of every layer and expert: which of them fail may change with the batch, what is compared must not.
        roles = {re.sub(r"\d+", "#", name) for name in error.names}
        left_out = [name for name in self.parameters if re.sub(r"\d+", "#", name) in roles]
        if not left_out or len(left_out) == len(self.parameters):
            return False
        for name in left_out:
            del self.parameters[name]
        log.warning(
            "%d parameters are left out of the geometry (%s, ...): %s", len(left_out), ", ".join(left_out[:2]), error
        )
        return True

    def _doubt(self, finite_loss: Tensor, products: Products) -> None:
        if self._doubted:
            return
        found = doubts(finite_loss, products.gram, products.alignment, products.target_square, products.precision)
        if found is not None:
            self._doubted = True
            log.warning(
                "the scores of this step are not to be trusted, and this is said once: %s. Score in higher precision "
                "(trainer.precision=32-true), or look at the losses and at scoring.layers",
                found,
            )

    def _verify(self, few: Batch) -> None:
        if self._kept is not None:
            try:
                verify_gradients(self.model, self._trainable, few, self.reduction, self._pass.packing(few))
            except (GradientMismatch, CaptureError) as error:
                if self.update != "auto":
                    raise
                self._refuse(str(error))
        if self._kept is None:
            verify_gradients(self.model, self.parameters, few, self.reduction, self._pass.packing(few))
        self._unverified = False

    def _say_left_out(self, few: Batch) -> None:
        """Once, what ``all`` does not mean: embeddings tied to the output layer, which may be most of the gradient."""
        self._unsaid = False
        share = share_left_out(self.model, self._tied, self._trainable, few, self.reduction)
        log.log(
            logging.WARNING if share > 0.5 else logging.INFO,
            "scoring.layers=all leaves out %s (embeddings tied to the output layer): %.1f %% of the squared gradient "
            "norms of %d candidates under P = I; K and b are exact of the rest. To score with them: scoring.layers=.*",
            ", ".join(self._tied),
            100 * share,
            len(few["labels"]),
        )

    def _refuse(self, reason: str) -> None:
        self._kept, self._refusal = None, reason
        log.warning("the update takes a second pass over the kept candidates (scoring.update=auto): %s", reason)

    def _keep(self, pool: Batch) -> KeptFactors | None:
        if self.update == "two_pass" or self._refusal is not None:
            return None
        if self.pool_micro_batch is not None:
            self._refusal = "scoring.pool_micro_batch holds no factors"
            return None
        if has_dropout(self.model):
            reason = "scoring is without dropout and training is not, so their gradients differ"
            if self.update == "one_pass":
                raise ValueError(f"scoring.update=one_pass is not possible: {reason}; use two_pass or auto")
            self._refuse(reason)
            return None
        return KeptFactors(self.model, self._trainable, pool)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: tensors and plain integers only.

        Returns:
            The stored target gradient and its counters.
        """
        return {"target": self.target.state_dict(), "tasks": self._pass.tasks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; scoring goes on bit for bit as if it had never stopped.

        Args:
            state: what ``state_dict`` gave.

        Raises:
            ValueError: the state belongs to other parameters.
        """
        strangers = {name.split(TASK)[0] for name in state["target"]["gradients"]} - set(self.parameters)
        if strangers:
            raise ValueError(
                f"the checkpoint's target gradient has parameters that are not scored here: {sorted(strangers)[:3]}; "
                f"was scoring.layers changed?"
            )
        self.target.load_state_dict(state["target"])
        self._pass.tasks = int(state.get("tasks", 0))


def _watch(optimizer: Any, scorer: Scorer) -> None:
    """Have a scorer's factors know of its optimizer's steps, for as long as there is the scorer."""
    watched = weakref.ref(scorer)

    def stepped(*unused: Any) -> None:
        found = watched()
        if found is not None and found._kept is not None:
            found._kept.stepped = True

    if isinstance(optimizer, torch.optim.Optimizer):
        optimizer.register_step_post_hook(stepped)
