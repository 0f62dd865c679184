"""OPUS: utility of the optimizer's updates in a sketch, drawn by Boltzmann sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from winnow.choice.sampling import boltzmann
from winnow.selection import Selection
from winnow.selectors.base import candidates, check_filter_size, coherent, given, keep, source_of_chance
from winnow.selectors.greats import common_step
from winnow.signals import Needs, Signals


@dataclass
class Opus:
    """Draw k candidates by the target utility of their updates less what they share with those drawn already.

    Needs: alignment (P^1) and gram (P^2) from a CountSketch of the updates. A target task.
    Cost: scoring pool and target once (forward and backward, per-example sketches), then training on the kept.
    Rule: k times: draw i from C without S with chance proportional to exp(u_i / temperature), u_i = <P g_i, g*> - s
        sum_{j in S} <P g_i, P g_j>, inner products of sketches. w_i = 1.
    Knobs:
        filter_size: candidates kept, k; 1 to data.pool_size.
        temperature: > 0; in standard deviations of u over those left, with as_released in units of u.
        sketch: size m of the CountSketch, >= 1; null for exact inner products.
        sketch_seed: of the CountSketch; the same at every step.
        as_released: the paper's own scale: u = lr <P g_i, g*> - lr^2 sum <P g_i, P g_j>, not standardised;
            otherwise s is the best common step along the k most aligned candidates and u is standardised at every
            draw.
        lr: learning rate of the training, > 0; used only by as_released.
    Source: Wang et al. 2026, OPUS, arXiv 2602.05400.
    Departures: by default calibrated and standardised: at the raw scale of fine-tuning the draw is uniform at every
        temperature near one, and the second term is inert. The target batch is the task's, in place of a proxy
        drawn from the pre-training stream. Sketches are of exact per-example updates, layer by layer. P is the
        optimizer's as winnow.geometry knows it: the paper's two, AdamW and Muon (Newton-Schulz frozen at the
        momentum, AdamW for the parameters that optimizer=muon leaves to it), and others; SGD is P = I.
    """

    filter_size: int = 4
    temperature: float = 0.5
    sketch: int | None = 8192
    sketch_seed: int = 0
    as_released: bool = False
    lr: float | None = None

    def __post_init__(self) -> None:
        check_filter_size(self.filter_size)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"selector.temperature must be > 0 and finite, got {self.temperature}")
        if self.sketch is not None and self.sketch < 1:
            raise ValueError(f"selector.sketch must be >= 1, or null for exact products, got {self.sketch}")
        if self.as_released and (self.lr is None or not self.lr > 0):
            raise ValueError(f"selector.lr must be > 0 with selector.as_released=true, got {self.lr}")

    @property
    def needs(self) -> Needs:
        """Alignment and K of the updates, sketched."""
        return Needs(alignment=1, gram=2, sketch=self.sketch, sketch_seed=self.sketch_seed)

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Draw from one pool."""
        source = source_of_chance(generator, "Opus")
        alignment, gram = given(signals.alignment, "alignment"), given(signals.gram, "gram")
        usable = candidates(signals, self.filter_size, alignment.to(signals.valid.device))
        usable = coherent(gram, usable)
        alignment, gram = alignment[usable], gram[usable][:, usable]
        first = float(self.lr or 0) if self.as_released else 1.0
        step = first if self.as_released else common_step(gram, alignment, self.filter_size)
        scores, shared = first * alignment, first * step * gram
        chosen = boltzmann(
            scores, shared, self.filter_size, self.temperature, source, standardised=not self.as_released
        )
        return keep(signals, usable[chosen], step=step, short=float(len(usable) < self.filter_size))
