"""Filter-then-weight: the suite's own method."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from winnow.choice import filters, weights
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, coherent, given, keep
from winnow.signals import Needs, Signals

MATCHES = {"metric": (1, 1), "target": (0, 1), "update": (2, 1), "raw": (0, 0)}
"""Powers of P in K and in b, by ``match``."""


@dataclass
class FilterWeight:
    """Keep the candidates that bring the next update closest to the target's, then solve for their weights.

    Needs: alignment, and gram or norms: one forward and backward over the pool and the target batch, in
        the optimizer's geometry. A target task.
    Cost: scoring pool and target once (forward and backward, per-example products), then training on the kept.
    Rule: S = filter(K, b), |S| = k; w = argmin_{w >= 0} 1/2 w'K_SS w - b_S'w; gradient (1/|S|) sum_S w_i g_i.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
        filter: cosine | top | omp | nnls | greedy (winnow.choice.filters).
        weight: nnls | uniform | proportional | softmax | simplex | box (winnow.choice.weights).
        match: metric | target | update | raw: which vectors are matched (docs/METHOD.md).
        ridge: of the solvers and of omp, nnls, greedy; in units of the mean of diag K, >= 0.
        normalise: mean_one (weights of mean one: the step size stays the optimizer's) | none (the solver's scale).
        on_empty: best | uniform | skip, when every weight comes out zero: train on the best candidate,
            on what the filter would keep, or not at all.
        momentum: match the whole next update, so that what momentum already brings is not bought twice.
        temperature: of softmax, in standard deviations of b, > 0.
        w_max: of box, in units of one target gradient, > 0.
        fill: filters that run out of useful candidates go on to k all the same.
    Source: Filter-then-Weight, arXiv 2604.00001.
    Departures: the paper's equations are not public to us: this is our reading of it, derived in
        docs/METHOD.md. Copies of a kept candidate get no weight of their own where weights are solved for.
    """

    filter_size: int = 4
    filter: str = "cosine"
    weight: str = "nnls"
    match: str = "metric"
    ridge: float = 0.0
    normalise: str = "mean_one"
    on_empty: str = "best"
    momentum: bool = False
    temperature: float = 1.0
    w_max: float = 1.0
    fill: bool = True

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)
        for name, allowed in (
            ("filter", filters.FILTERS),
            ("weight", weights.WEIGHTS),
            ("match", tuple(MATCHES)),
            ("normalise", ("mean_one", "none")),
            ("on_empty", ("best", "uniform", "skip")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"selector.{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        if not 0 <= self.ridge < math.inf:
            raise ValueError(f"selector.ridge must be >= 0 and finite, got {self.ridge}")
        for name in ("temperature", "w_max"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"selector.{name} must be > 0 and finite, got {getattr(self, name)}")

    @property
    def needs(self) -> Needs:
        """K where something is solved; where only the norms are used, its diagonal."""
        gram, alignment = MATCHES[self.match]
        if self.filter in filters.SOLVED or self.weight in weights.SOLVED:
            return Needs(gram=gram, alignment=alignment, momentum=self.momentum)
        norms = gram if self.filter == "cosine" else None
        return Needs(norms=norms, alignment=alignment, momentum=self.momentum)

    def scores(self, signals: Signals) -> Float[Tensor, " pool"] | None:
        """What the filter ranks by, the highest kept."""
        alignment = given(signals.alignment, "alignment")
        if self.filter == "cosine":
            norms = signals.norms
            if norms is None:
                norms = given(signals.gram, "gram").diagonal().clamp_min(0).sqrt()
            return filters.per_norm(alignment, given(norms, "norms"))
        return alignment if self.filter == "top" else None

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose from one pool; deterministic."""
        alignment = given(signals.alignment, "alignment")
        gram, norms = self._lengths(signals)
        usable = candidates(signals, self.filter_size, alignment.to(signals.valid.device))
        if norms is not None:
            usable = usable[norms[usable].isfinite()]
        if gram is not None:
            usable = coherent(gram, usable)
            gram = gram[usable][:, usable]
        alignment = alignment[usable]
        norms = None if norms is None else norms[usable]
        chosen = self._filter(gram, norms, alignment)
        coefficient = self._weigh(None if gram is None else gram[chosen][:, chosen], alignment[chosen])
        empty = not bool((coefficient > 0).any())
        if empty and len(usable):
            scores = alignment if norms is None else filters.per_norm(alignment, norms)
            count = {"best": 1, "uniform": self.filter_size, "skip": 0}[self.on_empty]
            chosen = chosen if self.on_empty == "uniform" and len(chosen) else filters.top(scores, count)
            coefficient = weights.uniform(alignment[chosen])
        left = coefficient > 0
        filtered, chosen, coefficient = len(chosen), chosen[left], coefficient[left]
        weight = coefficient * len(chosen)
        if self.weight == "uniform" or empty:
            weight = torch.ones_like(weight)  # exactly, so that keeping everything is plain training
        elif self.normalise == "mean_one":
            weight = weight / weight.mean()
        diagnostics = {
            "utility": float(weight @ alignment[chosen]) / max(len(chosen), 1),
            "scale": float(coefficient.sum()),
            "positive": float((alignment > 0).double().mean()) if len(alignment) else 0.0,
            "filtered": float(filtered),
            "short": float(len(usable) < self.filter_size),
            "empty": float(empty),
        }
        if gram is not None and len(chosen):
            small = gram[chosen][:, chosen]
            values = torch.linalg.eigvalsh(small)
            diagnostics["objective"] = float(coefficient @ (small @ coefficient / 2 - alignment[chosen]))
            diagnostics["condition"] = float(values[-1] / values[0].clamp_min(1e-16 * values[-1].clamp_min(1e-300)))
        return keep(signals, usable[chosen], weight, **diagnostics)

    def _lengths(self, signals: Signals) -> tuple[Tensor | None, Tensor | None]:
        needs = self.needs
        if needs.gram is not None:
            gram = given(signals.gram, "gram")
            return gram, gram.diagonal().clamp_min(0).sqrt()
        return None, (given(signals.norms, "norms") if needs.norms is not None else None)

    def _filter(self, gram: Tensor | None, norms: Tensor | None, alignment: Tensor) -> Tensor:
        if self.filter == "top":
            return filters.top(alignment, self.filter_size)
        if self.filter == "cosine":
            assert norms is not None
            return filters.cosine(alignment, norms, self.filter_size)
        assert gram is not None
        solved = {"omp": filters.omp, "nnls": filters.nnls, "greedy": filters.greedy}[self.filter]
        return solved(gram, alignment, self.filter_size, ridge=self.ridge, fill=self.fill)

    def _weigh(self, gram: Tensor | None, alignment: Tensor) -> Tensor:
        if self.weight == "uniform":
            return weights.uniform(alignment)
        if self.weight == "proportional":
            return weights.proportional(alignment)
        if self.weight == "softmax":
            return weights.softmax(alignment, self.temperature)
        assert gram is not None
        one = weights.distinct(gram)
        small, linear = gram[one][:, one], alignment[one]
        coefficient = torch.zeros_like(alignment)
        if self.weight == "nnls":
            coefficient[one] = weights.nnls(small, linear, self.ridge)
        elif self.weight == "simplex":
            coefficient[one] = weights.simplex(small, linear, self.ridge)
        else:
            coefficient[one] = weights.box(small, linear, self.w_max, self.ridge)
        return coefficient
