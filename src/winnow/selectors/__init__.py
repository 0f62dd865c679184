"""Selectors: which candidates of a pool to train on, and with what weight. One file per method.

A selector's class docstring is its method card, with fixed headings (Needs, Cost, Rule, Knobs, Source,
Departures); ``python -m winnow.methods`` prints the table of all of them.
"""

from winnow.selectors.adapt import Adapt
from winnow.selectors.base import Selector
from winnow.selectors.colm import CoLM
from winnow.selectors.craig import Craig
from winnow.selectors.data_shapley import DataShapley
from winnow.selectors.embedding import Embedding
from winnow.selectors.filter_weight import FilterWeight
from winnow.selectors.full import Full
from winnow.selectors.gate_only import GateOnly
from winnow.selectors.grad_match import GradMatch
from winnow.selectors.grad_norm import GradNorm
from winnow.selectors.greats import Greats
from winnow.selectors.influence_distillation import InfluenceDistillation
from winnow.selectors.less import Less
from winnow.selectors.max_loss import MaxLoss
from winnow.selectors.mid_ppl import MidPPL
from winnow.selectors.opus import Opus
from winnow.selectors.oracle import Oracle
from winnow.selectors.random import Random
from winnow.selectors.replay import Replay
from winnow.selectors.rho_loss import RhoLoss
from winnow.selectors.selective_backprop import SelectiveBackprop
from winnow.selectors.tracin import TracIn
from winnow.selectors.uds import UDS

__all__ = [
    "UDS",
    "Adapt",
    "CoLM",
    "Craig",
    "DataShapley",
    "Embedding",
    "FilterWeight",
    "Full",
    "GateOnly",
    "GradMatch",
    "GradNorm",
    "Greats",
    "InfluenceDistillation",
    "Less",
    "MaxLoss",
    "MidPPL",
    "Opus",
    "Oracle",
    "Random",
    "Replay",
    "RhoLoss",
    "SelectiveBackprop",
    "Selector",
    "TracIn",
]
