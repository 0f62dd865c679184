"""Per-example gradients of every kind of layer: one file a kind, and the table that finds the rule of a module.

Every rule gets tensors whose first dimension is the example. What has no closed form goes through a vmapped
vector-Jacobian product of that module alone.
"""

from torch import nn

from winnow.gradients.layers.call import Call, LayerRule, Slot, differentiable
from winnow.gradients.layers.embedding import EMBEDDING
from winnow.gradients.layers.experts import EXPERTS
from winnow.gradients.layers.generic import GENERIC
from winnow.gradients.layers.layer_norm import LAYER_NORM
from winnow.gradients.layers.linear import CONV1D, LINEAR
from winnow.gradients.layers.rms_norm import RMS_NORM

__all__ = ["RULES", "Call", "LayerRule", "Slot", "differentiable", "rule_for"]

RULES = (LINEAR, EMBEDDING, LAYER_NORM, CONV1D, EXPERTS, RMS_NORM, GENERIC)
"""The first that matches holds; the last matches everything."""


def rule_for(module: nn.Module) -> LayerRule:
    """The rule for a module.

    Args:
        module: a module that owns parameters.

    Returns:
        The first of ``RULES`` that matches it.
    """
    return next(rule for rule in RULES if rule.matches(module))
