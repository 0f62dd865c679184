"""Scores at a lower price: of shorter texts, in lower precision, or by a smaller model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from winnow.lm.crop import cropped
from winnow.lm.layout import Batch, response_tokens
from winnow.parallel import ParallelScorer, Ranks
from winnow.scorer import Scorer
from winnow.scorer.reference import check_same_vocabulary
from winnow.signals import Needs, Signals

PRECISIONS = ("bf16",)


@dataclass
class Cheaper:
    """How pools are scored, where not as they are trained on.

    Args:
        max_tokens: of every example that are scored; None for whole examples.
        precision: ``bf16`` scores under autocast; None for the precision of training.
        proxy: of a smaller model that reads the same token ids, which scores in the model's place, with P = I; or None.

    Raises:
        ValueError: an argument is out of range.
    """

    max_tokens: int | None = None
    precision: str | None = None
    proxy: Scorer | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 2:
            raise ValueError(
                f"scoring.max_tokens must be at least 2, or null for whole examples, got {self.max_tokens}"
            )
        if self.precision is not None and self.precision not in PRECISIONS:
            raise ValueError(f"scoring.precision must be bf16, or null for that of training, got {self.precision!r}")
        if self.proxy is not None:
            self.proxy.meter.adds = True

    @property
    def exact(self) -> bool:
        """Whether pools are scored as they are trained on, so that an update may come out of the same pass."""
        return self.max_tokens is None and self.precision is None and self.proxy is None

    def check(self, update: str) -> None:
        """Refuse an update out of a pass that was not the model's own over whole examples.

        Args:
            update: ``scoring.update``.

        Raises:
            ValueError: the two contradict each other.
        """
        if not self.exact and update != "two_pass":
            raise ValueError(
                f"scoring.update={update} makes the update out of the pass that scores, and scoring.max_tokens, "
                "precision or proxy score something else: set scoring.update=two_pass"
            )

    def scorers(self, scorer: Scorer) -> list[Scorer]:
        """Everything that passes batches through a model.

        Args:
            scorer: of the model that is trained.

        Returns:
            It, and the proxy's if there is one.
        """
        return [scorer] if self.proxy is None else [scorer, self.proxy]

    def score(
        self,
        scorer: Scorer,
        pool: Batch,
        target: Mapping[str, Tensor] | None,
        needs: Needs,
        weight: Float[Tensor, " target"] | None,
        task: Int[Tensor, " target"] | None,
        meta: Mapping[str, Sequence[str]],
    ) -> Signals:
        """Score a pool.

        Args:
            scorer: of the model that is trained.
            pool: the candidates.
            target: the target batch.
            needs: what to compute.
            weight: share of each target example.
            task: number of each target example's task.
            meta: facts about the candidates.

        Returns:
            The signals; their numbers of tokens are those of whole examples.
        """
        if self.exact:
            return scorer(pool, target, needs, weight, target_task=task, meta=meta)
        used = scorer if self.proxy is None else self.proxy
        if self.proxy is not None:
            scorer.forget()
            self.proxy.model.to(pool["labels"].device)
        short, aim = pool, target
        if self.max_tokens is not None:
            short = cropped(pool, self.max_tokens)
            aim = None if target is None else cropped(target, self.max_tokens)
        with self._precision(pool["labels"].device):
            signals = used(short, aim, needs, weight, target_task=task, meta=meta)
        return replace(signals, tokens=response_tokens(pool))

    def _precision(self, device: torch.device) -> AbstractContextManager[object]:
        if self.precision is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)


def proxy_scorer(
    model: nn.Module, proxy: nn.Module, ranks: Ranks | None = None, pool: str = "global", **options: object
) -> Scorer:
    """A scorer of a smaller model that is not trained, in plain gradients.

    Args:
        model: the model that is trained, for its vocabulary.
        proxy: the smaller one.
        ranks: the processes that share every pool; None for one.
        pool: ``parallel.pool``.
        **options: of the scorer.

    Returns:
        The scorer.

    Raises:
        ValueError: the vocabularies differ.
    """
    check_same_vocabulary(model, proxy, "scoring.proxy")
    optimizer = torch.optim.SGD(proxy.parameters())
    options |= {"geometry": "identity"}
    if ranks is not None:
        return ParallelScorer(proxy, optimizer, ranks=ranks, pool=pool, **options)
    return Scorer(proxy, optimizer, **options)  # type: ignore[arg-type]
