"""What a batch says about the parameters, per example, as factors."""

from winnow.gradients.capture import Capture
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense, Scaled
from winnow.gradients.factors.outer_product import OuterProduct
from winnow.gradients.factors.scatter import Scatter
from winnow.gradients.factors.sum import Sum

__all__ = ["Capture", "Dense", "Factor", "OuterProduct", "Scaled", "Scatter", "Sum"]
