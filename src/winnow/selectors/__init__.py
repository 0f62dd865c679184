"""Selectors: which candidates to train on, and with what weight. One file per method."""

from winnow.selectors.full import Full
from winnow.selectors.selector import Selector

__all__ = ["Full", "Selector"]
