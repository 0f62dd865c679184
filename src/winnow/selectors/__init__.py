"""Selectors: which candidates of a pool to train on, and with what weight. One file per method.

A selector's class docstring is its method card, with fixed headings (Needs, Cost, Rule, Knobs, Source,
Departures); ``python -m winnow.methods`` prints the table of all of them.
"""

from winnow.selectors.base import Selector
from winnow.selectors.filter_weight import FilterWeight
from winnow.selectors.full import Full
from winnow.selectors.grad_norm import GradNorm
from winnow.selectors.greats import Greats
from winnow.selectors.max_loss import MaxLoss
from winnow.selectors.random import Random
from winnow.selectors.tracin import TracIn

__all__ = ["FilterWeight", "Full", "GradNorm", "Greats", "MaxLoss", "Random", "Selector", "TracIn"]
