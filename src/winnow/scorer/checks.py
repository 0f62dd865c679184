"""What a scorer looks at once: its gradients, the believability of its products, and what they cost."""

from __future__ import annotations

import logging

from jaxtyping import Bool, Int
from torch import Tensor

from winnow.gradients.capture import CaptureError
from winnow.gradients.verify import GradientMismatch, UsedOutside, share_left_out, verify_gradients
from winnow.lm.batch import TargetBatch
from winnow.lm.layout import KEYS, Batch
from winnow.products.sums import Sums
from winnow.scorer.doubts import doubts
from winnow.scorer.one_pass import Update
from winnow.scorer.parameters import leave_outside
from winnow.scorer.pool_pass import PoolPass

log = logging.getLogger(__name__)

VERIFIED_ROWS = 4


class Checks:
    """Verifies, doubts and describes, each once.

    Args:
        passing: what scores the pools.
        update: what makes the update.
        layers: which parameters take part, as it was asked for.
        verify: whether captured gradients are compared with autograd's.
    """

    def __init__(self, passing: PoolPass, update: Update, layers: str, verify: bool) -> None:
        self.passing, self.update, self.layers = passing, update, layers
        scored = passing.scope.parameters
        self._left_out = [name for name in update.trainable if name not in scored] if layers == "all" else []
        self._unsaid, self._unverified = bool(self._left_out), verify
        self._undescribed, self._doubted = True, False

    def __call__(
        self,
        pool: Batch,
        target: TargetBatch | None,
        present: Bool[Tensor, " pool"],
        valid: Bool[Tensor, " pool"],
        sums: Sums,
    ) -> None:
        """Look at what a call computed.

        Args:
            pool: the candidates.
            target: target examples that went through the model beside them.
            present: candidates with response tokens and a finite loss.
            valid: those of finite products, too.
            sums: K, b and norms.

        Raises:
            GradientMismatch: a captured gradient is not autograd's, and nothing can be done about it.
        """
        micro_batch = self.passing.micro_batch
        if self._undescribed and micro_batch is None:
            run = pool["input_ids"].numel() + (0 if target is None else target.tokens["input_ids"].numel())
            model = self.passing.scope.forward.model
            log.info("scoring.layers=%s: %s", self.layers, self.passing.work.describe(model, run))
            self._undescribed = False
        if not self._doubted:
            self._doubt(present, sums)
        passes = self.passing.scope.forward.passes
        counted = len(passes)
        if (self._unverified or self._unsaid) and bool(valid.any()):
            rows: Int[Tensor, " some"] = valid.nonzero().squeeze(1)
            rows = rows[: min(VERIFIED_ROWS, micro_batch or VERIFIED_ROWS)]
            some = {key: pool[key][rows] for key in KEYS}
            if self._unsaid:
                self._say_left_out(some)
            if self._unverified:
                self._verify(some)
        del passes[counted:]  # of a first pool only: a run that is resumed is to count as one that never stopped

    def _doubt(self, present: Tensor, sums: Sums) -> None:
        found = doubts(present, sums.gram, sums.alignment, sums.target_square, sums.precision)
        if found is not None:
            self._doubted = True
            log.warning(
                "scores of this step look wrong (reported once): %s. Score in higher precision "
                "(trainer.precision=32-true), or look at the losses and at scoring.layers",
                found,
            )

    def _verify(self, some: Batch) -> None:
        forward = self.passing.scope.forward
        if self.update.held is not None:
            try:
                verify_gradients(forward, self.update.trainable, some)
            except (GradientMismatch, CaptureError) as error:
                if self.update.how != "auto":
                    raise
                outside = isinstance(error, UsedOutside)
                self.update.refuse("parameters are used outside their modules' calls" if outside else str(error))
        if self.update.held is None:
            self._verify_scored(some)
        self._unverified = False

    def _verify_scored(self, some: Batch) -> None:
        """Leave out what no module's call can tell the gradients of; whatever else disagrees ends the run."""
        forward, scored = self.passing.scope.forward, self.passing.scope.parameters
        try:
            verify_gradients(forward, scored, some)
        except UsedOutside as error:
            if len(error.names) == len(scored):
                raise
            leave_outside(scored, error.names, share_left_out(forward, error.names, self.update.trainable, some))

    def _say_left_out(self, some: Batch) -> None:
        """What ``all`` does not mean: embeddings tied to the output layer, which may be most of the gradient."""
        self._unsaid = False
        share = share_left_out(self.passing.scope.forward, self._left_out, self.update.trainable, some)
        log.log(
            logging.WARNING if share > 0.5 else logging.INFO,
            "scoring.layers=all leaves out %s (embeddings tied to the output layer): %.1f %% of the squared gradient "
            "norms of %d candidates under P = I; K and b are exact of the rest. To score with them: scoring.layers=.*",
            ", ".join(self._left_out),
            100 * share,
            len(some["labels"]),
        )
