"""From an optimizer's state to the preconditioner P its next update applies to a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from winnow.geometry.adafactor import AdafactorRule
from winnow.geometry.adam import AdamRule
from winnow.geometry.adam8bit import Adam8bitRule, is_adam8bit
from winnow.geometry.base import Geometry, Group, Preconditioner, UpdateRule
from winnow.geometry.muon import MuonRule
from winnow.geometry.preconditioners import Diagonal, Identity, Multiple, OneSided, RankOne
from winnow.geometry.sgd import IdentityGeometry, SGDRule
from winnow.geometry.state import StateGeometry
from winnow.optim import MuonWithAdamW

__all__ = [
    "Diagonal",
    "Geometry",
    "Identity",
    "IdentityGeometry",
    "Multiple",
    "OneSided",
    "Preconditioner",
    "RankOne",
    "StateGeometry",
    "UnknownOptimizer",
    "geometry_of",
]

_MUON: tuple[type, ...] = (torch.optim.Muon,) if hasattr(torch.optim, "Muon") else ()


RULES: tuple[tuple[Callable[[Any], bool], Callable[[], UpdateRule], str], ...] = (
    (lambda it: isinstance(it, torch.optim.Adam | torch.optim.AdamW), AdamRule, "Adam and AdamW of torch.optim"),
    (is_adam8bit, Adam8bitRule, "those of bitsandbytes"),
    (lambda it: isinstance(it, torch.optim.SGD), SGDRule, "SGD"),
    (lambda it: isinstance(it, torch.optim.Adafactor), AdafactorRule, "Adafactor"),
    (lambda it: isinstance(it, _MUON), MuonRule, "Muon"),
)
"""Which optimizers, the rule of their update, and what messages call them; the first that matches holds."""


class UnknownOptimizer(ValueError):
    """An optimizer whose geometry is unknown or does not exist: it can train, and P cannot be asked of it."""


def geometry_of(optimizer: Any, geometry: str | Geometry = "auto", first_step: str = "pool") -> Geometry:
    """The geometry of an optimizer.

    Args:
        optimizer: a torch optimizer, or a wrapper that holds it as ``.optimizer``.
        geometry: ``auto`` reads the optimizer, ``identity`` is P = I, or a ``Geometry`` of one's own.
        first_step: what P is before a state exists, for optimizers that need one: ``pool`` or ``identity``.

    Returns:
        The geometry.

    Raises:
        UnknownOptimizer: the optimizer's geometry is unknown or does not exist.
        ValueError: ``geometry`` is another word, or lacks a method.
    """
    if isinstance(geometry, Geometry):
        return geometry
    if geometry == "identity":
        return IdentityGeometry()
    if geometry != "auto":
        raise ValueError(
            f"geometry must be 'auto', 'identity' or a Geometry, with its methods preconditioner, ready and momentum "
            f"(scoring.geometry), got {geometry!r}"
        )
    while not isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if isinstance(optimizer, MuonWithAdamW):
        rules: dict[str, UpdateRule] = {"muon": MuonRule(), "adamw": AdamRule()}

        def rule_of(group: Group) -> UpdateRule:
            return rules[group["rule"]]

        return StateGeometry(optimizer, rule_of, first_step)
    rule = _rule(optimizer)
    return StateGeometry(optimizer, lambda group: rule, first_step)


def _rule(optimizer: Any) -> UpdateRule:
    for kinds, build, _ in RULES:
        if kinds(optimizer):
            return build()
    name = type(optimizer).__name__
    if "lion" in name.lower():
        raise UnknownOptimizer(
            f"{name} has no geometry: its update is the sign of the momentum, whose derivative in the gradient is zero "
            f"almost everywhere, so no preconditioner says how a candidate moves it; train with optimizer=adamw or "
            f"optimizer=muon, or score with plain gradients by scoring.geometry=identity"
        )
    raise UnknownOptimizer(
        f"no geometry is known for the optimizer {name}: supported are {', '.join(words for _, _, words in RULES)} "
        f"and winnow.optim.MuonWithAdamW; scoring.geometry=identity scores with plain gradients instead"
    )
